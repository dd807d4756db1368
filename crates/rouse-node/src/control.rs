//! The control plane: create, change, list and delete functions.
//!
//! Order in each: check what can be checked; store the package (synced); take `changes` and check again; commit the
//! metadata (synced); only then change what is in memory and answer. A crash in between leaves at most a package
//! that nobody names, which the next start removes.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::task::JoinError;
use uuid::Uuid;

use crate::engine::build::{self, Occasion, remove_all};
use crate::engine::function::{Function, function_of};
use crate::events::policy::EventPolicy;
use crate::function::arn::{FunctionRef, LATEST, function_arn};
use crate::function::record::{CodeRef, FunctionRecord, State, key, now_ms};
use crate::function::request::{
    CreateFunction, FunctionCode, PublishVersion, UpdateCode, UpdateConfiguration,
};
use crate::function::validate;
use crate::node::Node;
use crate::package::{CodePin, PackageError, UnpackError};
use crate::refusal::{Refusal, chain};
use crate::serving::policy::ServingPolicy;
use crate::store::StoreError;

/// One page of a listing.
#[derive(Debug, Clone)]
pub struct Page {
    /// Functions, by name.
    pub functions: Vec<Arc<FunctionRecord>>,
    /// Where the next page begins, if there is one.
    pub next_marker: Option<String>,
}

/// Most functions in one page, and the default.
const PAGE: usize = 50;

impl Node {
    /// CreateFunction. The function is `Pending` until its snapshot has been tried.
    pub async fn create_function(
        self: &Arc<Self>,
        request: CreateFunction,
    ) -> Result<Arc<FunctionRecord>, Refusal> {
        let text = request.function_name.as_deref().ok_or_else(|| {
            Refusal::Validation(
                "1 validation error detected: Value null at 'functionName' failed to satisfy constraint: Member must not be null".into(),
            )
        })?;
        let target = FunctionRef::parse(text)?;
        let settings = validate::create(&request, &target.name)?;
        self.check_free(&target.name)?;
        let (code, pin) = self
            .store_code(request.code.clone().unwrap_or_default())
            .await?;
        let record = FunctionRecord {
            name: target.name.clone(),
            version: LATEST.into(),
            settings,
            code,
            revision_id: Uuid::new_v4().to_string(),
            last_modified_ms: now_ms(),
            state: State::Busy,
            last_update: State::Done,
            next_version: 1,
            events: self.with_dead_letters(
                &EventPolicy::default(),
                request.settings.dead_letter_config.as_ref(),
            )?,
            serving: patched(
                &ServingPolicy::default(),
                request.settings.rouse_serving.as_ref(),
            )?,
        };
        self.check_sandbox(&record)?;
        let _changes = self.changes.lock().await;
        self.check_free(&target.name)?;
        let (record, version) = first_version(record, request.publish == Some(true));
        self.commit(std::iter::once(&record).chain(&version).cloned().collect())
            .await?;
        let latest = self.launch(&record, pin)?;
        match version {
            Some(version) => {
                let pin = self.packages.pin(&version.code.sha256_hex);
                self.launch(&version, pin)
            }
            None => Ok(latest),
        }
    }

    /// UpdateFunctionCode. The old code runs on until the new snapshot has been tried.
    pub async fn update_code(
        self: &Arc<Self>,
        target: &FunctionRef,
        request: UpdateCode,
    ) -> Result<Arc<FunctionRecord>, Refusal> {
        validate::architecture(request.architectures.as_deref())?;
        let function = self.changeable(target, request.revision_id.as_deref())?;
        let (code, pin) = self.store_code(request.code).await?;
        if request.dry_run == Some(true) {
            let mut record = FunctionRecord::clone(&function.record());
            record.code = code;
            return Ok(Arc::new(record));
        }
        let _changes = self.changes.lock().await;
        let function = self.changeable(target, request.revision_id.as_deref())?;
        let old = function.record();
        let record = FunctionRecord {
            code,
            ..changed(&old)
        };
        self.change(&function, record, pin, request.publish == Some(true))
            .await
    }

    /// UpdateFunctionConfiguration.
    pub async fn update_configuration(
        self: &Arc<Self>,
        target: &FunctionRef,
        request: UpdateConfiguration,
    ) -> Result<Arc<FunctionRecord>, Refusal> {
        let _changes = self.changes.lock().await;
        let function = self.changeable(target, request.revision_id.as_deref())?;
        let old = function.record();
        let settings = validate::update(&old.settings, request.role.as_deref(), &request.settings)?;
        let pin = self.packages.pin(&old.code.sha256_hex);
        let record = FunctionRecord {
            settings,
            events: self
                .with_dead_letters(&old.events, request.settings.dead_letter_config.as_ref())?,
            serving: patched(&old.serving, request.settings.rouse_serving.as_ref())?,
            ..changed(&old)
        };
        self.check_sandbox(&record)?;
        self.change(&function, record, pin, false).await
    }

    /// PublishVersion: freezes `$LATEST` under the next number, or gives back the last version if nothing changed.
    pub async fn publish_version(
        self: &Arc<Self>,
        target: &FunctionRef,
        request: PublishVersion,
    ) -> Result<Arc<FunctionRecord>, Refusal> {
        let _changes = self.changes.lock().await;
        let function = self.changeable(target, request.revision_id.as_deref())?;
        let latest = function.record();
        if let Some(sha256) = request
            .code_sha256
            .as_deref()
            .filter(|sha256| *sha256 != code_sha256(&latest.code))
        {
            return Err(Refusal::InvalidParameterValue(format!(
                "CodeSHA256 ({}) is different from current CodeSHA256 in $LATEST ({sha256}). Please try again with the CodeSHA256 in $LATEST.",
                code_sha256(&latest.code)
            )));
        }
        let previous = self.get_by_key(&key(&latest.name, &(latest.next_version - 1).to_string()));
        if let Some(previous) = previous.map(|previous| previous.record()) {
            let mut settings = latest.settings.clone();
            settings
                .description
                .clone_from(&previous.settings.description);
            if previous.code == latest.code && previous.settings == settings {
                return Ok(previous);
            }
        }
        let (mut version, latest) = published(&latest);
        if let Some(description) = request.description {
            version.settings.description = description;
        }
        self.commit(vec![version.clone(), latest.clone()]).await?;
        function.set_record(Arc::new(latest));
        let pin = self.packages.pin(&version.code.sha256_hex);
        self.launch(&version, pin)
    }

    /// GetFunction, GetFunctionConfiguration.
    pub fn get_function(&self, target: &FunctionRef) -> Result<Arc<FunctionRecord>, Refusal> {
        self.find(target).map(|function| function.record())
    }

    /// ListFunctions. With `all_versions` also the published versions.
    pub fn list_functions(
        &self,
        marker: Option<&str>,
        max_items: Option<usize>,
        all_versions: bool,
    ) -> Result<Page, Refusal> {
        let mut records: Vec<_> = self
            .all()
            .iter()
            .map(|f| f.record())
            .filter(|r| all_versions || r.version == LATEST)
            .collect();
        records.sort_by(|a, b| order(a).cmp(&order(b)));
        page(records, marker, max_items)
    }

    /// ListVersionsByFunction, `$LATEST` first.
    pub fn list_versions(
        &self,
        target: &FunctionRef,
        marker: Option<&str>,
        max_items: Option<usize>,
    ) -> Result<Page, Refusal> {
        let name = self.find(target)?.record().name.clone();
        let mut records: Vec<_> = self
            .all()
            .iter()
            .map(|f| f.record())
            .filter(|r| r.name == name)
            .collect();
        records.sort_by(|a, b| order(a).cmp(&order(b)));
        page(records, marker, max_items)
    }

    /// DeleteFunction: one version, or without qualifier everything of that name.
    pub async fn delete_function(self: &Arc<Self>, target: &FunctionRef) -> Result<(), Refusal> {
        if target.qualifier.as_deref() == Some(LATEST) {
            return Err(Refusal::InvalidParameterValue(
                "$LATEST version cannot be deleted without deleting the function.".into(),
            ));
        }
        let _changes = self.changes.lock().await;
        let function = self.find(target)?;
        let name = function.record().name.clone();
        let keys: Vec<String> = match &target.qualifier {
            Some(_) => vec![function.key.clone()],
            None => self
                .all()
                .iter()
                .map(|f| f.key.clone())
                .filter(|key| function_of(key) == name)
                .collect(),
        };
        let (store, stored) = (Arc::clone(&self.store), keys.clone());
        blocking(tokio::task::spawn_blocking(move || store.remove_functions(&stored)).await)?;
        for function in self.remove(&keys) {
            function.retire();
            remove_all(self, &function.record()).await;
        }
        if target.qualifier.is_none() {
            self.logs.remove(&name);
        }
        Ok(())
    }

    fn check_free(&self, name: &str) -> Result<(), Refusal> {
        match self.get_by_key(name) {
            Some(_) => Err(Refusal::ResourceConflict(format!(
                "Function already exist: {name}"
            ))),
            None => Ok(()),
        }
    }

    /// `$LATEST` of a function, if it may be changed now.
    pub(crate) fn changeable(
        &self,
        target: &FunctionRef,
        revision_id: Option<&str>,
    ) -> Result<Arc<Function>, Refusal> {
        let function = self.find(target)?;
        let record = function.record();
        if record.version != LATEST {
            return Err(Refusal::InvalidParameterValue(
                "Published versions cannot be changed; name the function without a qualifier."
                    .into(),
            ));
        }
        if revision_id.is_some_and(|id| id != record.revision_id) {
            return Err(Refusal::PreconditionFailed);
        }
        if record.state == State::Busy {
            return Err(Refusal::ResourceConflict(
                "The operation cannot be performed at this time. The function is currently in the following state: Pending".into(),
            ));
        }
        if record.last_update == State::Busy {
            let arn = function_arn(
                &self.config.region,
                &self.config.account,
                &record.name,
                None,
            );
            return Err(Refusal::ResourceConflict(format!(
                "The operation cannot be performed at this time. An update is in progress for resource: {arn}"
            )));
        }
        Ok(function)
    }

    /// Stores a change of `$LATEST` and builds it. Under `changes`.
    async fn change(
        self: &Arc<Self>,
        function: &Arc<Function>,
        record: FunctionRecord,
        pin: CodePin,
        publish: bool,
    ) -> Result<Arc<FunctionRecord>, Refusal> {
        let (version, record) = match publish {
            true => {
                let (version, latest) = published(&record);
                (Some(version), latest)
            }
            false => (None, record),
        };
        self.commit(std::iter::once(&record).chain(&version).cloned().collect())
            .await?;
        let record = Arc::new(record);
        function.set_record(Arc::clone(&record));
        self.build(function, &record, pin)?;
        match version {
            Some(version) => {
                let pin = self.packages.pin(&version.code.sha256_hex);
                self.launch(&version, pin)
            }
            None => Ok(record),
        }
    }

    /// Makes a stored function known and builds it.
    fn launch(
        self: &Arc<Self>,
        record: &FunctionRecord,
        pin: CodePin,
    ) -> Result<Arc<FunctionRecord>, Refusal> {
        let record = Arc::new(record.clone());
        let function = self.add(Arc::clone(&record));
        self.build(&function, &record, pin)?;
        Ok(record)
    }

    fn build(
        self: &Arc<Self>,
        function: &Arc<Function>,
        record: &Arc<FunctionRecord>,
        pin: CodePin,
    ) -> Result<(), Refusal> {
        let revision = self.revision(record, pin).ok_or_else(|| {
            Refusal::Service(format!(
                "The runtime {} is unknown.",
                record.settings.runtime
            ))
        })?;
        build::spawn(
            self,
            Arc::clone(function),
            Arc::new(revision),
            Occasion::Change,
        );
        Ok(())
    }

    /// Writes functions, all or none.
    pub(crate) async fn commit(&self, records: Vec<FunctionRecord>) -> Result<(), Refusal> {
        let store = Arc::clone(&self.store);
        let written = tokio::task::spawn_blocking(move || {
            store.put_functions(&records.iter().collect::<Vec<_>>())
        })
        .await;
        blocking(written)
    }

    /// Decodes and stores a package.
    async fn store_code(&self, code: FunctionCode) -> Result<(CodeRef, CodePin), Refusal> {
        let limit = self.config.max_zip_bytes;
        let packages = Arc::clone(&self.packages);
        let Some(text) = code.zip_file else {
            return Err(Refusal::InvalidParameterValue(
                if code.s3_bucket.is_some() || code.image_uri.is_some() {
                    "This node takes code only as ZipFile; S3 and container images are not supported.".into()
                } else {
                    "Please provide a source for function code.".into()
                },
            ));
        };
        if text.len() as u64 / 4 * 3 > limit + 2 {
            return Err(Refusal::RequestTooLarge(format!(
                "Zipped size must be smaller than {limit} bytes"
            )));
        }
        let stored = tokio::task::spawn_blocking(move || match STANDARD.decode(text) {
            Ok(zip) => packages
                .store(&zip)
                .map_err(|error| package_refusal(&error)),
            Err(_) => Err(Refusal::InvalidParameterValue(UNZIP.into())),
        });
        stored.await.unwrap_or_else(|error| {
            Err(Refusal::Service(format!(
                "The package could not be stored: {error}"
            )))
        })
    }
}

/// SHA-256 of a package as Lambda writes it: base64.
pub fn code_sha256(code: &CodeRef) -> String {
    let bytes: Vec<u8> = (0..code.sha256_hex.len() / 2)
        .filter_map(|at| u8::from_str_radix(code.sha256_hex.get(2 * at..2 * at + 2)?, 16).ok())
        .collect();
    STANDARD.encode(bytes)
}

const UNZIP: &str =
    "Could not unzip uploaded file. Please check your file, then try to upload again.";

fn package_refusal(error: &PackageError) -> Refusal {
    match error {
        PackageError::TooLarge { .. } => Refusal::RequestTooLarge(error.to_string()),
        PackageError::Unpack(UnpackError::TooLarge(_)) => {
            Refusal::InvalidParameterValue(innermost(error))
        }
        PackageError::Unpack(UnpackError::Io { .. }) | PackageError::Io { .. } => {
            tracing::error!(error = chain(error), "a package could not be stored");
            Refusal::Service(format!("The package could not be stored: {}", chain(error)))
        }
        PackageError::Unpack(UnpackError::Archive(_)) => {
            Refusal::InvalidParameterValue(UNZIP.into())
        }
        PackageError::Unpack(reason) => {
            Refusal::InvalidParameterValue(format!("{UNZIP} ({reason})"))
        }
    }
}

fn innermost(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => innermost(source),
        None => error.to_string(),
    }
}

fn blocking(result: Result<Result<(), StoreError>, JoinError>) -> Result<(), Refusal> {
    match result {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            tracing::error!(error = chain(&error), "the metadata store failed");
            Err(Refusal::Service(chain(&error)))
        }
        Err(error) => Err(Refusal::Service(error.to_string())),
    }
}

/// The record of a change that is about to be built.
fn changed(old: &FunctionRecord) -> FunctionRecord {
    FunctionRecord {
        revision_id: Uuid::new_v4().to_string(),
        last_modified_ms: now_ms(),
        // A function that had failed gets a new chance.
        state: if old.state == State::Done {
            State::Done
        } else {
            State::Busy
        },
        last_update: State::Busy,
        ..old.clone()
    }
}

/// A policy with what a request says about it.
fn patched(
    policy: &ServingPolicy,
    patch: Option<&serde_json::Value>,
) -> Result<ServingPolicy, Refusal> {
    match patch {
        Some(patch) => policy.patched(patch),
        None => Ok(policy.clone()),
    }
}

/// `latest` frozen as its next version, and `latest` with the number after it.
fn published(latest: &FunctionRecord) -> (FunctionRecord, FunctionRecord) {
    let version = FunctionRecord {
        version: latest.next_version.to_string(),
        revision_id: Uuid::new_v4().to_string(),
        last_modified_ms: now_ms(),
        state: State::Busy,
        last_update: State::Done,
        next_version: 0,
        serving: latest.serving.of_version(),
        events: EventPolicy {
            // The rest belongs to the version that it was given.
            dead_letters: latest.events.dead_letters.clone(),
            ..EventPolicy::default()
        },
        ..latest.clone()
    };
    (
        version,
        FunctionRecord {
            next_version: latest.next_version + 1,
            ..latest.clone()
        },
    )
}

fn first_version(
    record: FunctionRecord,
    publish: bool,
) -> (FunctionRecord, Option<FunctionRecord>) {
    if publish {
        let (version, latest) = published(&record);
        (latest, Some(version))
    } else {
        (record, None)
    }
}

/// By name, then `$LATEST`, then by number.
fn order(record: &FunctionRecord) -> (&str, u64) {
    (&record.name, record.version.parse().unwrap_or(0))
}

/// A marker is the key of the first function of its page.
fn page(
    records: Vec<Arc<FunctionRecord>>,
    marker: Option<&str>,
    max_items: Option<usize>,
) -> Result<Page, Refusal> {
    let start = match marker {
        None | Some("") => 0,
        // What was deleted meanwhile must not end the listing: go on where it would have been.
        Some(marker) => {
            let (name, version) = marker.split_once(':').unwrap_or((marker, LATEST));
            let from = (name, version.parse().unwrap_or(0));
            records
                .iter()
                .position(|record| order(record) >= from)
                .unwrap_or(records.len())
        }
    };
    let size = max_items.unwrap_or(PAGE).clamp(1, PAGE);
    let next_marker = records.get(start + size).map(|record| record.key());
    Ok(Page {
        functions: records.into_iter().skip(start).take(size).collect(),
        next_marker,
    })
}
