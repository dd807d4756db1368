//! The metadata of a node, in one transactional file (`meta.redb`).
//!
//! Every method that changes something returns after the change is on disk.

use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::function::record::{FunctionRecord, SnapshotRecord};
use crate::versions::history::History;

const META: TableDefinition<&str, &str> = TableDefinition::new("meta");
const FUNCTIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("functions");
const SNAPSHOTS: TableDefinition<&str, &[u8]> = TableDefinition::new("snapshots");
/// What is kept of snapshots beside the current ones, which are in `SNAPSHOTS`.
const VERSIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("versions");
const EVENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("events");
const PAYLOADS: TableDefinition<u64, &[u8]> = TableDefinition::new("payloads");

/// Version of the tables and of what is in them.
const FORMAT: &str = "1";

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be read or written, or is damaged.
    #[error("the metadata store failed")]
    Database(#[source] Box<redb::Error>),
    /// A value that this version of rouse does not understand.
    #[error("the metadata store holds something unreadable at {key:?}")]
    Value {
        /// Its key.
        key: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Written by another version.
    #[error("the metadata store has format {0:?}, this version of rouse reads {FORMAT:?}")]
    Format(String),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        StoreError::Database(Box::new(error.into()))
    }
}

/// An asynchronous invocation that was accepted and is not yet done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventRecord {
    /// Request id.
    pub request_id: String,
    /// Function's name.
    pub function: String,
    /// Version.
    pub version: String,
    /// `X-Amz-Client-Context`, as it came.
    pub client_context: Option<String>,
    /// Milliseconds since the epoch.
    pub accepted_ms: u64,
    /// Attempts that began.
    pub attempts: u32,
    /// Of these, attempts that have ended with a function error.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// Events that led to this one, as destinations of one another.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub hops: u32,
    /// The queue that this is to be put into, instead of being handled by the function, which it then came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The store.
#[derive(Debug)]
pub struct Store {
    database: Database,
}

impl Store {
    /// Opens or creates the file. A file left by a crash is repaired.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = Database::builder().set_cache_size(16 << 20).create(path)?;
        let transaction = database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            let found = meta.get("format")?.map(|value| value.value().to_owned());
            match found {
                Some(format) if format != FORMAT => return Err(StoreError::Format(format)),
                Some(_) => {}
                None => {
                    meta.insert("format", FORMAT)?;
                }
            }
            transaction.open_table(FUNCTIONS)?;
            transaction.open_table(SNAPSHOTS)?;
            transaction.open_table(VERSIONS)?;
            transaction.open_table(EVENTS)?;
            transaction.open_table(PAYLOADS)?;
        }
        transaction.commit()?;
        Ok(Store { database })
    }

    /// Can it be read?
    pub fn check(&self) -> Result<(), StoreError> {
        let transaction = self.database.begin_read()?;
        transaction.open_table(META)?.get("format")?;
        Ok(())
    }

    /// All functions, by key.
    pub fn functions(&self) -> Result<Vec<FunctionRecord>, StoreError> {
        self.all(FUNCTIONS)
    }

    /// All snapshots, with their functions' keys.
    pub fn snapshots(&self) -> Result<Vec<(String, SnapshotRecord)>, StoreError> {
        self.pairs(SNAPSHOTS)
    }

    /// What is kept of other versions of snapshots, with their functions' keys.
    pub fn histories(&self) -> Result<Vec<(String, History)>, StoreError> {
        self.pairs(VERSIONS)
    }

    /// Writes which version of a snapshot is current and which are kept, all or nothing.
    pub fn put_versions(
        &self,
        key: &str,
        current: &SnapshotRecord,
        history: &History,
    ) -> Result<(), StoreError> {
        let transaction = self.database.begin_write()?;
        {
            let mut snapshots = transaction.open_table(SNAPSHOTS)?;
            snapshots.insert(key, encode(key, current)?.as_slice())?;
            let mut versions = transaction.open_table(VERSIONS)?;
            versions.insert(key, encode(key, history)?.as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Writes functions, all or none.
    pub fn put_functions(&self, records: &[&FunctionRecord]) -> Result<(), StoreError> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(FUNCTIONS)?;
            for record in records {
                let key = record.key();
                table.insert(key.as_str(), encode(&key, record)?.as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Removes functions and their snapshots, all or none.
    pub fn remove_functions(&self, keys: &[String]) -> Result<(), StoreError> {
        let transaction = self.database.begin_write()?;
        {
            let mut functions = transaction.open_table(FUNCTIONS)?;
            let mut snapshots = transaction.open_table(SNAPSHOTS)?;
            let mut versions = transaction.open_table(VERSIONS)?;
            for key in keys {
                functions.remove(key.as_str())?;
                snapshots.remove(key.as_str())?;
                versions.remove(key.as_str())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Writes the end of a build: the function's new states, and its snapshot if there is one.
    pub fn put_build(
        &self,
        record: &FunctionRecord,
        snapshot: Option<&SnapshotRecord>,
        history: &History,
    ) -> Result<(), StoreError> {
        let key = record.key();
        let transaction = self.database.begin_write()?;
        {
            let mut functions = transaction.open_table(FUNCTIONS)?;
            let mut snapshots = transaction.open_table(SNAPSHOTS)?;
            functions.insert(key.as_str(), encode(&key, record)?.as_slice())?;
            match snapshot {
                Some(snapshot) => {
                    snapshots.insert(key.as_str(), encode(&key, snapshot)?.as_slice())?;
                }
                None => {
                    snapshots.remove(key.as_str())?;
                }
            }
            let mut versions = transaction.open_table(VERSIONS)?;
            versions.insert(key.as_str(), encode(&key, history)?.as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Accepts an asynchronous invocation; returns its number, which is larger than all before.
    pub fn add_event(&self, event: &EventRecord, payload: &[u8]) -> Result<u64, StoreError> {
        let transaction = self.database.begin_write()?;
        let id = insert_event(&transaction, event, payload)?;
        transaction.commit()?;
        Ok(id)
    }

    /// All asynchronous invocations that are not done, oldest first.
    pub fn events(&self) -> Result<Vec<(u64, EventRecord)>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(EVENTS)?;
        table
            .iter()?
            .map(|row| {
                let (key, value) = row?;
                Ok((
                    key.value(),
                    decode(&key.value().to_string(), value.value())?,
                ))
            })
            .collect()
    }

    /// Payload of an asynchronous invocation.
    pub fn payload(&self, id: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(PAYLOADS)?;
        Ok(table.get(id)?.map(|value| value.value().to_vec()))
    }

    /// Writes the new state of an asynchronous invocation.
    pub fn update_event(&self, id: u64, event: &EventRecord) -> Result<(), StoreError> {
        let transaction = self.database.begin_write()?;
        transaction
            .open_table(EVENTS)?
            .insert(id, encode(&event.request_id, event)?.as_slice())?;
        transaction.commit()?;
        Ok(())
    }

    /// An asynchronous invocation is done, and others follow from it: all or nothing. Returns the numbers of the others.
    pub fn settle_event(
        &self,
        id: u64,
        follow_ups: &[(EventRecord, Vec<u8>)],
    ) -> Result<Vec<u64>, StoreError> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(EVENTS)?.remove(id)?;
        transaction.open_table(PAYLOADS)?.remove(id)?;
        let ids = follow_ups
            .iter()
            .map(|(event, payload)| insert_event(&transaction, event, payload))
            .collect::<Result<_, _>>()?;
        transaction.commit()?;
        Ok(ids)
    }

    fn pairs<T: DeserializeOwned>(
        &self,
        definition: TableDefinition<&str, &[u8]>,
    ) -> Result<Vec<(String, T)>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(definition)?;
        table
            .iter()?
            .map(|row| {
                let (key, value) = row?;
                Ok((key.value().to_owned(), decode(key.value(), value.value())?))
            })
            .collect()
    }

    fn all<T: DeserializeOwned>(
        &self,
        definition: TableDefinition<&str, &[u8]>,
    ) -> Result<Vec<T>, StoreError> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(definition)?;
        table
            .iter()?
            .map(|row| {
                let (key, value) = row?;
                decode(key.value(), value.value())
            })
            .collect()
    }
}

/// Adds an event under the next number.
fn insert_event(
    transaction: &WriteTransaction,
    event: &EventRecord,
    payload: &[u8],
) -> Result<u64, StoreError> {
    let mut meta = transaction.open_table(META)?;
    let id = meta
        .get("next_event")?
        .and_then(|value| value.value().parse().ok())
        .unwrap_or(0u64);
    meta.insert("next_event", (id + 1).to_string().as_str())?;
    transaction
        .open_table(EVENTS)?
        .insert(id, encode(&event.request_id, event)?.as_slice())?;
    transaction.open_table(PAYLOADS)?.insert(id, payload)?;
    Ok(id)
}

fn encode<T: Serialize>(key: &str, value: &T) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|source| StoreError::Value {
        key: key.to_owned(),
        source,
    })
}

fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|source| StoreError::Value {
        key: key.to_owned(),
        source,
    })
}
