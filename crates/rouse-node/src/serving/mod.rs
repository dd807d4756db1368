//! How each function is served: what its owner may decide, and what follows from that.
//!
//! | module | holds |
//! |---|---|
//! | [`policy`] | the decisions, as they are stored, and completed by the node's defaults |
//! | [`keep_alive`] | how long idle instances are kept: fixed, or learnt from the function's own pauses |
//! | [`control`] | the operations that read and change them |

pub mod control;
pub mod keep_alive;
pub mod policy;
