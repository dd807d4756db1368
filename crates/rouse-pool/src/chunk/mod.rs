//! Chunks: the stored bytes of pieces, encoded on the way out and verified on the way in.

pub(crate) mod cut;
mod decoder;
mod error;
pub(crate) mod parent;

pub use decoder::Decoder;
pub use error::PieceError;
pub use parent::{Base, ParentPages};
