//! Functions: how they are named, asked for, checked and stored.

pub mod arn;
pub mod record;
pub mod request;
pub mod snapshot_point;
pub mod validate;
