//! Puts instances back to their snapshots: the `rewind` path.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::parked::Waiting;
use super::{LaunchError, Launcher, log_pipe, micros};
use crate::image::{Image, Programs};
use crate::instance::{BootPath, Instance, LaunchSpec};
use crate::rewind::{Baseline, RewindError, Subject, run};

impl Launcher {
    /// Puts an instance that has answered back to its snapshot. It waits then as a parked one does, and goes on with
    /// [`Instance::resume`]. It has a new listener, connection and log; the old listener must be closed.
    ///
    /// # Errors
    /// The instance has been ended then.
    pub async fn rewind(&self, instance: Instance) -> Result<Instance, RewindError> {
        Ok(self.rewound(instance).await?.instance)
    }

    /// The same, and keeps it for a later request (see [`Self::take_rewound`]), but no longer than `keep`, and beside
    /// at most `most - 1` others.
    pub async fn rewind_and_keep(
        &self,
        instance: Instance,
        most: usize,
        keep: Duration,
    ) -> Result<(), RewindError> {
        let Some(origin) = &instance.origin else {
            return Err(RewindError::Lasting("it comes from no snapshot".into()));
        };
        let parked = self.parked_of(&origin.image.clone(), &origin.spec.clone());
        let mut waiting = self.rewound(instance).await?;
        // The image owns what waits.
        waiting.instance.origin = None;
        parked.put_rewound(waiting, most, keep);
        Ok(())
    }

    /// Takes an instance that was rewound and kept; it goes on with [`Instance::resume`]. `None` when there is none.
    pub fn take_rewound(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
    ) -> Result<Option<Instance>, LaunchError> {
        let begin = Instant::now();
        image.verify_files()?;
        let (verify, taking) = (micros(begin), Instant::now());
        let taken = (image.parked()).and_then(|parked| parked.copies().take_rewound());
        Ok(taken.map(|waiting| self.awake(image, spec, waiting, verify, taking)))
    }

    async fn rewound(&self, mut instance: Instance) -> Result<Waiting, RewindError> {
        let lasting = |why: &str| RewindError::Lasting(why.into());
        // Nobody may listen where the new connection is made.
        (instance.listener, instance.parked) = (None, None);
        let pid = instance
            .pid()
            .ok_or_else(|| lasting("it has not reported"))?;
        let origin = instance.origin.take();
        let origin = origin.ok_or_else(|| lasting("it comes from no snapshot"))?;
        if origin.watched {
            return Err(lasting("its memory is watched by the pager"));
        }
        let image = origin.image.clone();
        let programs = image.programs();
        let baseline = self.baseline(&image, &origin.spec, &programs).await?;
        let same = |(a, b): (_, &Arc<_>)| Arc::ptr_eq(a, b);
        if !origin.memories.iter().zip(&baseline.memories).all(same) {
            return Err(lasting("its pages have moved to another pool"));
        }
        let (log, log_end) = log_pipe().map_err(|e| RewindError::Baseline(Box::new(e)))?;
        let memories = baseline.memories.clone();
        let started = Instant::now();
        let (launcher, programs_of_it) = (self.clone(), programs.clone());
        let (done, result) = tokio::sync::oneshot::channel();
        // It ends in another network namespace.
        let work = move || {
            let subject = Subject {
                pid,
                image: &image,
                environment: &launcher.inner.environment,
                working_set: programs_of_it.working_set(),
                copying: programs_of_it.copying(),
                baseline: &baseline,
                log: log_end.as_fd(),
            };
            // Whoever waited may have given up.
            let _ = done.send(run(&subject));
        };
        std::thread::Builder::new()
            .name("rewind".into())
            .spawn(work)
            .map_err(|e| RewindError::Channel("no thread for the rewind", e))?;
        let rewound = result.await.map_err(|_| RewindError::Cancelled)??;
        tracing::debug!(pid, us = micros(started), "an instance was rewound");
        let resume = rewound.control.try_clone();
        instance.resume =
            Some(resume.map_err(|e| RewindError::Channel("its control socket is gone", e))?);
        instance.path = BootPath::Rewind;
        instance.listener = Some(rewound.api.listener.into());
        instance.parked = Some(rewound.api.server.into());
        instance.log_inode = rustix::fs::fstat(&log).map_or(0, |stat| stat.st_ino);
        instance.log = Some(log);
        (instance.monitor).rewound(rewound.control, started, rewound.program);
        let prepared = programs.prepared(BootPath::Rewind);
        instance.origin = Some(crate::instance::Origin { prepared, ..origin });
        Ok(Waiting {
            instance,
            programs,
            memories,
            pidfd: rewound.pidfd,
        })
    }

    /// What a fresh instance looks like. One is made for that, and ended.
    async fn baseline(
        &self,
        image: &Arc<Image>,
        spec: &LaunchSpec,
        programs: &Arc<Programs>,
    ) -> Result<Arc<Baseline>, RewindError> {
        let memories = image.memories();
        if let Some(known) = image.baseline()
            && known.is_of(programs, &memories)
        {
            return Ok(known);
        }
        let fresh = self.park(image, spec).await;
        let fresh = fresh.map_err(|e| RewindError::Baseline(Box::new(e)))?;
        let Some(pid) = fresh.instance.pid() else {
            return Err(RewindError::Cancelled);
        };
        let programs = fresh.programs.clone();
        let read = tokio::task::spawn_blocking(move || Baseline::read(pid, programs, memories));
        let baseline = Arc::new(read.await.map_err(|_| RewindError::Cancelled)??);
        drop(fresh);
        image.set_baseline(baseline.clone());
        Ok(baseline)
    }
}
