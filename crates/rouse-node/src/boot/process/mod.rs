//! Sandboxes of processes: each method of the traits is one of the launcher's, or of its instances and images.

mod snapshot;

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rouse_pool::cost::CostInputs;
use rouse_pool::keeper::{PageFault, PagerStats};
use rouse_process::instance::{Failure, Instance, LaunchSpec, MemoryUse, Stage};
use rouse_process::launcher::{CheckpointReport, LaunchError, Launcher, Residency, StockCounts};

use tokio::sync::Notify;

use snapshot::{image_of, loaded};

use super::{
    ApiListener, Boot, BootError, Booted, BoxFuture, Branch, BranchError, Live, LoadedImage,
    Purpose,
};
use crate::refusal::chain;

impl Live for Instance {
    fn kill(&self) {
        Instance::kill(self);
    }

    fn memory(&self) -> std::io::Result<MemoryUse> {
        Instance::memory(self)
    }

    fn told(&self) -> BoxFuture<'_, ()> {
        Box::pin(Instance::told(self))
    }

    fn stages(&self) -> Vec<Stage> {
        Instance::stages(self)
    }

    fn failure(&self) -> Option<Failure> {
        Instance::failure(self)
    }

    fn memory_peak(&self) -> u64 {
        Instance::memory_peak(self)
    }

    fn cpu_time(&self) -> std::io::Result<Duration> {
        Instance::cpu_time(self)
    }

    fn resume(&self) -> std::io::Result<()> {
        Instance::resume(self)
    }

    fn has_run(&self) -> bool {
        Instance::has_run(self)
    }

    fn page_fault(&self) -> BoxFuture<'_, Option<PageFault>> {
        Box::pin(Instance::page_fault(self))
    }

    fn is_to_be_observed(&self) -> bool {
        Instance::is_to_be_observed(self)
    }

    fn learn(&self) {
        Instance::learn(self);
    }

    fn verify_far(&self) -> BoxFuture<'_, Option<String>> {
        let verify = self.far_verifier();
        Box::pin(async move {
            // Cancelled only when the node ends.
            tokio::task::spawn_blocking(verify?).await.ok()?
        })
    }

    fn learn_rehearsed(&self) {
        Instance::learn_rehearsed(self);
    }
}

impl From<Instance> for Booted {
    fn from(mut instance: Instance) -> Self {
        Booted {
            path: instance.path,
            listener: instance.listener.take().map(ApiListener::Loopback),
            parked: instance.parked.take().map(Into::into),
            log: instance.log.take(),
            exit: instance.exit.clone(),
            live: Box::new(instance),
        }
    }
}

fn instance_of(live: Box<dyn Live>) -> Result<Instance, BootError> {
    let live: Box<dyn Any> = live;
    let instance = live.downcast::<Instance>();
    let instance = instance
        .map_err(|_| BootError::new("the instance was started by another kind of sandbox"))?;
    Ok(*instance)
}

/// What a launcher made, as the engine knows it.
fn booted(launched: Result<Instance, LaunchError>) -> Result<Booted, BootError> {
    launched.map(Booted::from).map_err(|error| BootError {
        is_from_outside: error.is_from_outside(),
        ..BootError::from_error(&error)
    })
}

impl Boot for Launcher {
    fn cold<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        Box::pin(async move { booted(Launcher::cold(self, spec).await) })
    }

    fn rewind<'a>(
        &'a self,
        live: Box<dyn Live>,
        most: usize,
        keep: Duration,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        Box::pin(async move {
            let instance = instance_of(live)?;
            Launcher::rewind_and_keep(self, instance, most, keep)
                .await
                .map_err(|e| BootError::from_error(&e))
        })
    }

    fn checkpoint<'a>(
        &'a self,
        live: Box<dyn Live>,
        purpose: Purpose,
        port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        Box::pin(async move {
            let instance = instance_of(live)?;
            let taken = match purpose {
                Purpose::Function => Launcher::checkpoint(self, instance, port, spec, dir).await,
                Purpose::Template => self.checkpoint_template(instance, port, spec, dir).await,
                Purpose::Specimen => self.checkpoint_specimen(instance, port, spec, dir).await,
            };
            taken.map_err(|e| BootError::from_error(&e))
        })
    }

    fn has_templates(&self) -> bool {
        true
    }

    fn set_costs(&self, costs: &CostInputs) {
        Launcher::set_costs(self, costs.clone());
    }

    fn pages_held(&self) -> u64 {
        self.resident_pages()
    }

    fn problems(&self) -> Vec<&'static str> {
        Launcher::problems(self)
    }

    fn sandbox_counts(&self) -> StockCounts {
        Launcher::sandbox_counts(self)
    }

    fn pager_stats(&self) -> Option<PagerStats> {
        Launcher::pager_stats(self)
    }

    fn shortage(&self) -> Arc<Notify> {
        Launcher::shortage(self)
    }

    fn collect(&self) -> BoxFuture<'_, Result<(), BootError>> {
        Box::pin(async {
            let report = Launcher::collect(self)
                .await
                .map_err(|e| BootError::from_error(&e))?;
            tracing::debug!(%report, "snapshots were collected");
            Ok(())
        })
    }

    fn branch<'a>(
        &'a self,
        live: &'a dyn Live,
        parked_port: u16,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Branch, BranchError>> {
        Box::pin(async move {
            let live: &dyn Any = live;
            let instance = live.downcast_ref::<Instance>().ok_or_else(|| {
                BranchError::Refused("it was started by another kind of sandbox".into())
            })?;
            match Launcher::branch(self, instance, parked_port, spec).await {
                Ok((image, report)) => Ok(Branch {
                    image: loaded(self, image),
                    report,
                }),
                Err(error) if error.is_fatal() => Err(BranchError::Ended(chain(&error))),
                Err(error) => Err(BranchError::Refused(chain(&error))),
            }
        })
    }

    fn load<'a>(
        &'a self,
        dir: &'a Path,
        ancestors: &'a [LoadedImage],
        residency: Residency,
    ) -> BoxFuture<'a, Result<LoadedImage, BootError>> {
        Box::pin(async move {
            let ancestors = ancestors
                .iter()
                .map(|image| image_of(image).cloned())
                .collect::<Result<Vec<_>, _>>()?;
            let image = Launcher::load(self, dir, &ancestors, residency)
                .await
                .map_err(|e| BootError::from_error(&e))?;
            Ok(loaded(self, image))
        })
    }
}
