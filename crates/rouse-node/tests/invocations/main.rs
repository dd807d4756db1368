//! Invocations from end to end below HTTP: real processes that speak the Runtime API to the node.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod admission;
mod destinations;
mod endings;
mod failures;
mod host;
mod paths;
mod serving;
mod survival;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use host::HostBoot;
use rouse_node::describe::Description;
use rouse_node::{
    BootPath, FunctionRef, InvokeOptions, InvokeOutcome, Node, NodeConfig, NodeError, Refusal,
};
use serde_json::{Value, json};

/// A node in a directory of its own.
pub(crate) struct Bed {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) boot: HostBoot,
    pub(crate) node: Arc<Node>,
}

impl Bed {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut NodeConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let boot = HostBoot::default();
        let node = start(dir.path(), &boot, change);
        Bed { dir, boot, node }
    }

    /// As after a restart of the process.
    pub(crate) async fn restart(self) -> Self {
        let Bed { dir, boot, node } = self;
        stop(node).await;
        // The last write to the store may outlive the node by a moment.
        loop {
            match try_start(dir.path(), &boot, |_| {}) {
                Ok(node) => return Bed { dir, boot, node },
                Err(NodeError::Store { .. }) => pause().await,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    pub(crate) fn mark(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) async fn create(&self, name: &str, more: Value) {
        self.create_with(name, include_str!("app.py"), more).await;
        while self.description(name).record.state == rouse_node::function::record::State::Busy {
            pause().await;
        }
    }

    async fn create_with(&self, name: &str, code: &str, more: Value) {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        writer
            .start_file("app.py", zip::write::SimpleFileOptions::default())
            .unwrap();
        writer.write_all(code.as_bytes()).unwrap();
        let zip = writer.finish().unwrap().into_inner();
        let mut body = json!({
            "FunctionName": name, "Runtime": "python3.11", "Role": "arn:aws:iam::000000000000:role/r", "Handler": "app.handler",
            "Timeout": 60, "Code": { "ZipFile": STANDARD.encode(zip) },
        });
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        self.node
            .create_function(serde_json::from_value(body).unwrap())
            .await
            .unwrap();
    }

    pub(crate) fn description(&self, name: &str) -> Description {
        self.node.describe(&target(name)).unwrap()
    }

    pub(crate) async fn invoke_with(
        &self,
        name: &str,
        event: Value,
        options: InvokeOptions,
    ) -> Result<InvokeOutcome, Refusal> {
        self.node
            .invoke(&target(name), Bytes::from(event.to_string()), &options)
            .await
    }

    pub(crate) async fn invoke(&self, name: &str, event: Value) -> InvokeOutcome {
        self.invoke_with(name, event, InvokeOptions::default())
            .await
            .unwrap()
    }

    pub(crate) async fn invoke_on(&self, name: &str, path: BootPath) -> Value {
        let options = InvokeOptions {
            boot: Some(path),
            ..InvokeOptions::default()
        };
        let outcome = self.invoke_with(name, json!({}), options).await.unwrap();
        assert_eq!(outcome.path, path);
        answer(&outcome)
    }

    /// Waits until the function has no instance but idle ones.
    pub(crate) async fn quiet(&self, name: &str) {
        while self.description(name).instances.busy > 0 {
            pause().await;
        }
    }
}

fn start(dir: &Path, boot: &HostBoot, change: impl FnOnce(&mut NodeConfig)) -> Arc<Node> {
    try_start(dir, boot, change).unwrap()
}

fn try_start(
    dir: &Path,
    boot: &HostBoot,
    change: impl FnOnce(&mut NodeConfig),
) -> Result<Arc<Node>, NodeError> {
    let mut config = NodeConfig {
        state_dir: dir.join("state"),
        async_retry_s: vec![0, 0],
        ..NodeConfig::default()
    };
    change(&mut config);
    Node::start(config, boot.clone())
}

async fn stop(node: Arc<Node>) {
    let weak = Arc::downgrade(&node);
    drop(node);
    while weak.strong_count() > 0 {
        pause().await;
    }
}

pub(crate) async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}

pub(crate) async fn exists(path: &str) {
    while !Path::new(path).exists() {
        pause().await;
    }
}

pub(crate) fn target(name: &str) -> FunctionRef {
    FunctionRef::parse(name).unwrap()
}

pub(crate) fn answer(outcome: &InvokeOutcome) -> Value {
    serde_json::from_slice(&outcome.payload).unwrap()
}
