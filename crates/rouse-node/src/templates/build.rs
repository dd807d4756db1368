//! Makes the snapshot of a template.

use std::time::Duration;

use super::Template;
use super::attended::{Attended, LIMIT};
use super::plan::TemplatePlan;
use crate::boot::Purpose;
use crate::engine::build::remove_directory;
use crate::node::Node;
use crate::runtime_api::session::{Phase, Session};

impl Node {
    pub(super) async fn make_template(&self, plan: &TemplatePlan) -> Result<Template, String> {
        let package = &plan.launch.task_dir;
        tokio::fs::create_dir_all(package)
            .await
            .map_err(|error| format!("{}: {error}", package.display()))?;
        let directory = self.template_directory(&plan.name);
        // What was there could not be used.
        remove_directory(directory.clone()).await;
        let boot = self.template_boot(plan.sandbox)?;
        let booted = boot.start_template(&plan.launch).await;
        let booted = booted.map_err(|error| error.to_string())?;
        let mut process = Attended::new(booted, Session::template(), None)?;
        let limit = Duration::from_secs(self.config.snapshot_init_timeout_s).max(LIMIT);
        let parked = process.parked(limit, |phase| match phase {
            Phase::Template { port } => Some(*port),
            _ => None,
        });
        let parked = parked.await?;
        // The connection and the pipe stay open until the process has been copied.
        let (live, tasks) = process.into_parts();
        let report = boot.checkpoint(live, Purpose::Template, parked, &plan.launch, &directory);
        let report = report.await;
        drop(tasks);
        let report = report.map_err(|error| error.to_string())?;
        tracing::info!(
            template = plan.name,
            pages = report.saved_pages,
            bytes = report.stored_bytes,
            "a language template was made"
        );
        self.load_template(plan).await
    }
}
