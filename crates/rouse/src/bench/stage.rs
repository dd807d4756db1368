//! What every benchmark does before it measures: functions are written, packed and deployed on its node.

use std::path::{Path, PathBuf};

use super::functions::Function;
use crate::client::api::{Client, FunctionSettings};
use crate::commands::deploy::{Deployed, Deployment, deploy};
use crate::local::Session;
use crate::output::error::Failed;
use crate::output::progress::Progress;
use crate::package::Package;

/// A node, and where functions are made for it.
pub struct Stage<'a> {
    /// The node.
    pub session: &'a Session,
    /// Its client.
    pub client: &'a Client,
    /// Tells what is being done.
    pub progress: &'a Progress,
    /// Directory for functions, gone when the benchmark ends.
    pub scratch: &'a Path,
    /// Installed packages.
    pub cache: &'a Path,
    /// Python 3 interpreter, which installs packages.
    pub python: &'a Path,
}

impl Stage<'_> {
    /// Writes a function, its packages beside it.
    pub fn prepare(&self, function: &Function) -> Result<PathBuf, Failed> {
        let step = self
            .progress
            .spinner(format!("preparing {}", function.name));
        let directory = self.scratch.join(function.name);
        if !directory.exists() {
            function.prepare(self.python, self.cache, &directory)?;
        }
        step.done("done");
        Ok(directory)
    }

    /// Deploys a function that was [prepared](Self::prepare), under any name.
    pub fn deploy(
        &self,
        function: &Function,
        name: &str,
        directory: &Path,
    ) -> Result<Deployed, Failed> {
        let package = Package::open(directory)?;
        let settings = FunctionSettings {
            runtime: Some(function.runtime.to_owned()),
            handler: Some(function.handler.to_owned()),
            memory_size: Some(function.memory_mib),
            timeout: Some(60),
            environment: None,
            snapshot_point: None,
            serving: None,
        };
        Ok(deploy(
            self.client,
            &Deployment {
                name,
                zip: &package.zip,
                settings: &settings,
            },
            self.progress,
        )?)
    }
}
