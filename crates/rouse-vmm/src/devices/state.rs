//! What a device remembers, as plain data: the part of a device that goes into a snapshot.
//!
//! What a device *has* (files, sockets, threads, what raises its interrupt) is not part of it: the machine that is restored
//! makes that anew, and then puts the state in.

use rouse_snapshot::model::DeviceState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A device that can go into a snapshot.
///
/// The guest must not run while either function does. [`State::restore`] gets what came from a file, which may say anything.
pub trait State {
    /// By this name it is found in a snapshot; no other device of the machine has it.
    const NAME: &'static str;
    /// Changes when `Saved` does, or what it means.
    const VERSION: u16;
    /// The data.
    type Saved: Serialize + DeserializeOwned;

    /// What it remembers now.
    fn save(&self) -> Self::Saved;

    /// Puts it into the state of `saved`.
    ///
    /// # Errors
    /// If no such device can be in that state. The device must not be used then.
    fn restore(&mut self, saved: Self::Saved) -> Result<(), StateError>;
}

/// A device cannot be put into a state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The snapshot does not have this device.
    #[error("the snapshot has no device {0}")]
    Missing(&'static str),
    /// It is of another release.
    #[error("the state of device {name} is of version {found}, not {wanted}")]
    Version {
        /// The device.
        name: &'static str,
        /// In the snapshot.
        found: u16,
        /// That this program knows.
        wanted: u16,
    },
    /// Its bytes are no state.
    #[error("the state of device {name} cannot be read")]
    Bytes {
        /// The device.
        name: &'static str,
        /// Why.
        source: postcard::Error,
    },
    /// No device can be in this state.
    #[error("device {name} cannot be in the state of the snapshot: {reason}")]
    Impossible {
        /// The device.
        name: &'static str,
        /// Why.
        reason: String,
    },
}

/// The state of one device as bytes, as it lies in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDevice {
    /// [`State::NAME`], and which of several devices.
    name: String,
    version: u16,
    /// [`State::Saved`], encoded by postcard.
    bytes: Vec<u8>,
}

impl SavedDevice {
    /// The state of `device`, the only one of its kind.
    pub fn of<D: State>(device: &D) -> Self {
        Self::named(D::NAME.to_owned(), device)
    }

    /// The state of `device`, which has this number among the devices of a machine.
    pub fn numbered<D: State>(device: &D, number: u16) -> Self {
        Self::named(numbered(D::NAME, number), device)
    }

    fn named<D: State>(name: String, device: &D) -> Self {
        Self {
            name,
            version: D::VERSION,
            bytes: postcard::to_stdvec(&device.save())
                .expect("plain data of known length can always be encoded"),
        }
    }

    /// Finds the state of `device` among `all` and puts it in.
    ///
    /// # Errors
    /// If there is none, or it cannot be.
    pub fn put_back<D: State>(all: &[Self], device: &mut D) -> Result<(), StateError> {
        Self::put_back_named(all, D::NAME, device)
    }

    /// The same for the one with this number.
    ///
    /// # Errors
    /// If there is none, or it cannot be.
    pub fn put_back_numbered<D: State>(
        all: &[Self],
        number: u16,
        device: &mut D,
    ) -> Result<(), StateError> {
        Self::put_back_named(all, &numbered(D::NAME, number), device)
    }

    fn put_back_named<D: State>(
        all: &[Self],
        wanted: &str,
        device: &mut D,
    ) -> Result<(), StateError> {
        let name = D::NAME;
        let saved = all
            .iter()
            .find(|saved| saved.name == wanted)
            .ok_or(StateError::Missing(name))?;
        if saved.version != D::VERSION {
            return Err(StateError::Version {
                name,
                found: saved.version,
                wanted: D::VERSION,
            });
        }
        let state = postcard::from_bytes(&saved.bytes)
            .map_err(|source| StateError::Bytes { name, source })?;
        device.restore(state)
    }
}

/// `block-0`.
fn numbered(name: &str, number: u16) -> String {
    format!("{name}-{number}")
}

impl From<SavedDevice> for DeviceState {
    fn from(saved: SavedDevice) -> Self {
        Self {
            name: saved.name,
            version: saved.version,
            bytes: saved.bytes,
        }
    }
}

impl From<DeviceState> for SavedDevice {
    fn from(state: DeviceState) -> Self {
        Self {
            name: state.name,
            version: state.version,
            bytes: state.bytes,
        }
    }
}
