//! The format of a rouse snapshot, on disk and in memory.
//!
//! A snapshot is a **manifest** beside a **page map**; the bytes of its pages lie in packs (`rouse-pool`). The manifest
//! says everything about a stopped process, or a paused virtual machine, except the bytes of its pages: registers,
//! mappings, file descriptors, timers, devices, the fingerprint of the host. [`model`] is the form that the rest of
//! rouse works with; [`validate`](validate()) says whether a value of it makes sense; [`manifest`]
//! turns it into bytes and back, and refuses whatever is damaged, unknown or inconsistent with a
//! reason that can be shown to a person. The layout is described in `docs/snapshot-format.md`.

pub mod manifest;
pub mod model;
pub mod page_class;
pub mod page_map;
pub mod validate;
pub mod working_set;

pub use page_class::PageClass;
pub use page_map::PageMap;
pub use validate::{Invalid, validate, validate_devices, validate_image, validate_machine};
pub use working_set::WorkingSet;
