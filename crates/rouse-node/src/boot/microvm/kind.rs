//! MicroVMs as a kind of sandbox: what the node asks of it.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rouse_process::instance::LaunchSpec;
use rouse_process::launcher::{CheckpointReport, Residency};
use rouse_sandbox::Limits;
use tokio::runtime::Handle;

use super::branch::Original;
use super::live::Machine;
use super::loaded::{image_of, loaded};
use super::{MicroVms, memory, supervisor};
use crate::boot::{
    Boot, BootError, Booted, BoxFuture, Branch, BranchError, Live, LoadedImage, Purpose,
};

/// Is it a machine?
pub(in crate::boot) fn is_machine(live: &dyn Live) -> bool {
    let live: &dyn Any = live;
    live.is::<Machine>()
}

fn machine_of(live: Box<dyn Live>) -> Result<Box<Machine>, BootError> {
    let live: Box<dyn Any> = live;
    let machine = live.downcast();
    machine.map_err(|_| BootError::new("the instance was started by another kind of sandbox"))
}

/// What blocks runs elsewhere.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BootError> + Send + 'static,
) -> Result<T, BootError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| BootError::new(error.to_string()))?
}

/// Has a machine written down, for as long as that may take.
async fn written(
    live: Box<dyn Live>,
    write: impl FnOnce(Machine) -> Result<CheckpointReport, BootError> + Send + 'static,
) -> Result<CheckpointReport, BootError> {
    let machine = machine_of(live)?;
    let state = machine.state();
    match tokio::time::timeout(supervisor::PATIENCE, aside(move || write(*machine))).await {
        Ok(written) => written,
        Err(_) => {
            // Ends whoever waits for it, too.
            state.kill();
            Err(BootError::new("the machine was not written down in time"))
        }
    }
}

impl Boot for MicroVms {
    fn fits(&self, memory_mib: u32) -> Result<(), BootError> {
        memory(memory_mib).map(drop)
    }

    fn cold<'a>(&'a self, spec: &'a LaunchSpec) -> BoxFuture<'a, Result<Booted, BootError>> {
        let (inner, spec, tasks) = (Arc::clone(&self.0), spec.clone(), Handle::current());
        Box::pin(aside(move || inner.boot(&spec, false, &tasks)))
    }

    fn has_templates(&self) -> bool {
        true
    }

    fn template_ground(&self, limits: &Limits) -> Result<Option<Vec<u8>>, BootError> {
        self.0.template_ground(limits).map(Some)
    }

    fn start_template<'a>(
        &'a self,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Booted, BootError>> {
        let (inner, spec, tasks) = (Arc::clone(&self.0), spec.clone(), Handle::current());
        Box::pin(aside(move || inner.boot(&spec, true, &tasks)))
    }

    fn rewind<'a>(
        &'a self,
        live: Box<dyn Live>,
        most: usize,
        keep: Duration,
    ) -> BoxFuture<'a, Result<(), BootError>> {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let machine = machine_of(live)?;
            let (image, booted) = aside(move || inner.rewind(*machine)).await?;
            let mut exit = booted.exit.clone();
            let id = image.copies.put_rewound(booted, most);
            let image = Arc::downgrade(&image);
            tokio::spawn(async move {
                let ended = exit.wait_for(Option::is_some);
                // Ended or not used: it goes in both cases.
                drop(tokio::time::timeout(keep, ended).await);
                if let Some(image) = image.upgrade() {
                    image.copies.end_rewound(id);
                }
            });
            Ok(())
        })
    }

    fn checkpoint<'a>(
        &'a self,
        live: Box<dyn Live>,
        purpose: Purpose,
        parked_port: u16,
        spec: &'a LaunchSpec,
        dir: &'a Path,
    ) -> BoxFuture<'a, Result<CheckpointReport, BootError>> {
        let (inner, spec, dir) = (Arc::clone(&self.0), spec.clone(), dir.to_owned());
        Box::pin(written(live, move |machine| match purpose {
            Purpose::Function => inner.checkpoint(machine, parked_port, &spec, &dir),
            Purpose::Template => inner.checkpoint_template(machine, parked_port, &spec, &dir),
            Purpose::Specimen => Err(BootError::new("templates of machines have no specimens")),
        }))
    }

    fn branch<'a>(
        &'a self,
        live: &'a dyn Live,
        parked_port: u16,
        spec: &'a LaunchSpec,
    ) -> BoxFuture<'a, Result<Branch, BranchError>> {
        let (inner, spec) = (Arc::clone(&self.0), spec.clone());
        let any: &dyn Any = live;
        let original = any.downcast_ref().map(Original::of);
        Box::pin(async move {
            let original = original.ok_or_else(|| {
                BranchError::Refused("it was started by another kind of sandbox".to_owned())
            })?;
            let task =
                tokio::task::spawn_blocking(move || inner.branch(&original, parked_port, &spec));
            task.await
                .unwrap_or_else(|error| Err(BranchError::Ended(error.to_string())))
        })
    }

    fn load<'a>(
        &'a self,
        dir: &'a Path,
        ancestors: &'a [LoadedImage],
        residency: Residency,
    ) -> BoxFuture<'a, Result<LoadedImage, BootError>> {
        let (inner, dir) = (Arc::clone(&self.0), dir.to_owned());
        let ancestors: Result<Vec<_>, _> = ancestors.iter().map(image_of).collect();
        Box::pin(async move {
            let ancestors = ancestors?;
            let machines = Arc::clone(&inner);
            let image = aside(move || inner.load(&dir, &ancestors, residency)).await?;
            Ok(loaded(&machines, image))
        })
    }
}
