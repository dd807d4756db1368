//! Makes the specimen of a template: a small function of nobody, whose pages other functions share.
//!
//! ```text
//!  template's pool   |TTTTTTTTTTTTTTTTTTTTTTTTTTTTT|     in DRAM once
//!  specimen          |..ss.....ss..........sss.....|     in DRAM once: what becoming a function writes
//!  function a        |..ss.....ssaa........sssa....|     only a is its own
//!  function b        |..bs.....ss..........sss.....|
//! ```
//! It is made as functions are, of the same template, with a package of a few lines that the node writes; so nothing of any tenant is in it,
//! and its pages may be shared by everybody, as the template's are. A template whose specimen cannot be made is used without.

use super::attended::{Attended, LIMIT};
use super::plan::TemplatePlan;
use crate::boot::{LoadedImage, Purpose};
use crate::engine::build::remove_directory;
use crate::function::record::SnapshotPoint;
use crate::node::Node;
use crate::runtime_api::answers;
use crate::runtime_api::session::{Phase, Session};
use rouse_process::launcher::Residency;

/// The function of nobody. Where it lies and what it is called is what others have most often.
const SOURCE: &str = "def handler(event, context):\n    return event\n";
const FILE: &str = "app.py";

/// Name of a specimen's directory.
pub(crate) fn specimen_name(template: &str) -> String {
    format!("{template}-specimen")
}

impl Node {
    /// The specimen of a template: loaded, or made if `make` says so.
    pub(super) async fn specimen(
        &self,
        plan: &TemplatePlan,
        template: &LoadedImage,
        make: bool,
    ) -> Option<LoadedImage> {
        plan.specimen.as_ref()?;
        let specimen = match (self.load_specimen(plan, template).await, make) {
            (Ok(specimen), _) => Ok(specimen),
            (Err(_), true) => self.make_specimen(plan, template).await,
            (Err(problem), false) => Err(problem),
        };
        let specimen = specimen
            .inspect_err(|reason| {
                tracing::warn!(template = plan.name, reason, "a template has no specimen");
            })
            .ok()?;
        template.share_specimen(&specimen);
        Some(specimen)
    }

    async fn load_specimen(
        &self,
        plan: &TemplatePlan,
        template: &LoadedImage,
    ) -> Result<LoadedImage, String> {
        let directory = self.template_directory(&specimen_name(&plan.name));
        let ancestors = std::slice::from_ref(template);
        let image = self.boot.load(&directory, ancestors, Residency::Now).await;
        image.map_err(|error| error.to_string())
    }

    async fn make_specimen(
        &self,
        plan: &TemplatePlan,
        template: &LoadedImage,
    ) -> Result<LoadedImage, String> {
        let spec = plan.specimen.as_ref().ok_or("its runtime has none")?;
        let package = &spec.task_dir;
        let write = async {
            tokio::fs::create_dir_all(package).await?;
            tokio::fs::write(package.join(FILE), SOURCE).await
        };
        write
            .await
            .map_err(|error| format!("{}: {error}", package.display()))?;
        let directory = self.template_directory(&specimen_name(&plan.name));
        // What was there could not be used.
        remove_directory(directory.clone()).await;
        let booted = template.restore(spec).await;
        let booted = booted.map_err(|error| error.to_string())?;
        let answer = answers::template(spec);
        let mut process = Attended::new(booted, Session::started(true), Some(answer))?;
        let parked = process.parked(LIMIT, |phase| match phase {
            Phase::Parked {
                point: SnapshotPoint::RestoreWithEvent,
                port,
            } => Some(*port),
            _ => None,
        });
        let parked = parked.await?;
        let (live, tasks) = process.into_parts();
        let report = self
            .boot
            .checkpoint(live, Purpose::Specimen, parked, spec, &directory)
            .await;
        drop(tasks);
        let report = report.map_err(|error| error.to_string())?;
        tracing::info!(
            template = plan.name,
            pages = report.saved_pages,
            bytes = report.stored_bytes,
            "a template's specimen was made"
        );
        self.load_specimen(plan, template).await
    }
}
