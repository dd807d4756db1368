//! The node: functions and their life, boot paths, invocations.
//!
//! A [`Node`] owns a state directory and everything that runs. Its methods are the operations of the API; they return
//! [`Refusal`], which carries Lambda's exceptions. It starts instances through [`boot::Boot`], and speaks the Lambda
//! Runtime API to each.
//!
//! | module | holds |
//! |---|---|
//! | [`function`] | names, requests, validation, stored records |
//! | [`package`] | zips and their unpacked files |
//! | [`store`] | the metadata, in redb |
//! | [`node`], [`control`] | start, and the control plane's operations |
//! | [`engine`] | snapshots and invocations |
//! | [`templates`] | started interpreters that functions are made of |
//! | [`versions`] | when snapshots are taken, which one is used, which are kept |
//! | [`residency`] | which functions' memory is in DRAM |
//! | [`instances`] | instances that can be named: forked, given an event, ended |
//! | [`serving`] | what may be decided about the serving of each function |
//! | [`events`] | asynchronous invocations |
//! | [`runtime_api`] | the API that runtimes call |
//! | [`logs`] | what functions print |
//! | [`metrics`], [`traces`] | what the node tells its operator |

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod boot;
pub mod config;
pub mod control;
pub mod describe;
pub mod engine;
pub mod events;
pub mod function;
pub mod instances;
pub mod logs;
pub mod metrics;
pub mod node;
pub mod package;
pub mod refusal;
pub mod residency;
pub mod runtime_api;
pub mod serving;
pub mod store;
pub mod templates;
pub mod time;
pub mod traces;
pub mod versions;

pub use config::{BootPolicy, ConfigError, Interpreters, MemorySettings, NodeConfig};
pub use engine::invoke::{InvokeOptions, InvokeOutcome};
pub use function::arn::FunctionRef;
pub use function::snapshot_point::{PointPolicy, SnapshotPointSettings};
pub use instances::InstanceId;
pub use node::{Node, NodeError};
pub use refusal::Refusal;
pub use rouse_process::instance::{BootPath, MemoryUse, Stage};
pub use serving::policy::{Isolation, KeepAlive, OnDisconnect, SandboxChoice, ServingPolicy};
pub use traces::TraceSettings;
