//! Language templates: interpreters that are started once, and of which functions are made.
//!
//! ```text
//!  start of the interpreter, client, common modules    parked in template/next     the function's init
//!  |------------- once for each template -------------|-- snapshot: the parent --|-- snapshot: a delta --|
//! ```
//! A template never runs code of a function and knows no tenant: its package is an empty directory, its variables are
//! those that all functions have. So its pages may be shared by everybody.
//!
//! [`plan`] says what a template depends on, which gives it its name; [`fit`] says which functions can be made of it;
//! [`build`] takes the snapshot, and [`specimen`] that of what all its functions have in common. docs/templates.md says why.

mod attended;
pub mod build;
pub mod fit;
pub mod plan;
pub mod specimen;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rouse_process::launcher::Residency;
use rouse_runtimes::Runtime;

use crate::boot::{Boot, LoadedImage};
use crate::engine::environment::limits;
use crate::engine::function::Revision;
use crate::function::record::FunctionRecord;
use crate::node::Node;
use crate::serving::policy::SandboxChoice;
use plan::TemplatePlan;

/// Directory below `snapshots/` in which templates are. No function can have this name.
pub const FOLDER: &str = "@templates";

/// A template in memory.
#[derive(Clone)]
pub struct Template {
    /// Name below [`FOLDER`].
    pub name: String,
    /// Its snapshot.
    pub image: LoadedImage,
    /// That of its specimen, if it has one.
    pub specimen: Option<LoadedImage>,
    /// When its pages were let go of, the last time.
    released: Arc<Mutex<Option<Instant>>>,
}

impl Template {
    fn new(name: &str, image: LoadedImage) -> Self {
        Self {
            name: name.to_owned(),
            image,
            specimen: None,
            released: Arc::default(),
        }
    }

    /// What snapshots of its functions may descend from.
    pub fn ancestors(&self) -> Vec<LoadedImage> {
        let specimen = self.specimen.iter();
        std::iter::once(&self.image)
            .chain(specimen)
            .cloned()
            .collect()
    }

    /// Its pages are let go of.
    pub fn note_release(&self) {
        let mut released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        *released = Some(Instant::now());
    }

    /// Were its pages let go of so lately?
    pub fn was_released_within(&self, time: Duration) -> bool {
        let released = self.released.lock().unwrap_or_else(PoisonError::into_inner);
        released.is_some_and(|at| at.elapsed() < time)
    }
}

/// The templates of a node, made or loaded when a function first needs one.
#[derive(Default)]
pub struct Templates {
    slots: Mutex<HashMap<String, Slot>>,
}

/// Locked while the template is being made, so that whoever else needs it waits.
type Slot = Arc<tokio::sync::Mutex<State>>;

#[derive(Default)]
enum State {
    #[default]
    Unknown,
    Ready {
        template: Template,
        /// There is a specimen, or it was tried to make one: not every build is to pay for the attempt.
        is_complete: bool,
    },
    /// It is not tried again before the node starts anew: every build would pay for the attempt.
    Failed(String),
}

impl Templates {
    fn slot(&self, name: &str) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.entry(name.to_owned()).or_default().clone()
    }

    /// Those that are in memory. One that is being made is left out.
    pub fn loaded(&self) -> Vec<Template> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let ready = |slot: &Slot| match &*slot.try_lock().ok()? {
            State::Ready { template, .. } => Some(template.clone()),
            State::Unknown | State::Failed(_) => None,
        };
        slots.values().filter_map(ready).collect()
    }
}

impl Node {
    /// What makes templates for functions of this kind, if something does.
    fn template_boot(&self, kind: SandboxChoice) -> Result<&Arc<dyn Boot>, String> {
        if !self.config.language_templates {
            return Err("there are no language templates on this node".into());
        }
        let boot = self.sandboxes.of(kind);
        let boot = boot.map_err(|error| error.reason.clone())?;
        match boot.has_templates() {
            true => Ok(boot),
            false => Err("this kind of sandbox has no templates".into()),
        }
    }

    /// The name of the template that the function would be made of. May block for as long as reading a machine's root takes.
    pub(crate) fn template_name(&self, record: &FunctionRecord) -> Option<String> {
        let boot = self.template_boot(record.serving.sandbox()).ok()?;
        let ground = boot.template_ground(&limits(&self.config, &record.settings));
        let ground = ground
            .inspect_err(|error| tracing::warn!(%error, "a template has no name"))
            .ok()?;
        let plan = self.plan_on(record, ground.as_deref()).ok()?;
        Some(plan.name)
    }

    fn plan_on(
        &self,
        record: &FunctionRecord,
        ground: Option<&[u8]>,
    ) -> Result<TemplatePlan, String> {
        let runtime = Runtime::parse(&record.settings.runtime);
        let limits = limits(&self.config, &record.settings);
        let plan =
            runtime.and_then(|runtime| TemplatePlan::of(&self.config, runtime, &limits, ground));
        plan.ok_or_else(|| "its runtime has no template".into())
    }

    async fn template_plan(
        &self,
        kind: SandboxChoice,
        record: &FunctionRecord,
    ) -> Result<TemplatePlan, String> {
        let boot = Arc::clone(self.template_boot(kind)?);
        let limits = limits(&self.config, &record.settings);
        let ground = tokio::task::spawn_blocking(move || boot.template_ground(&limits)).await;
        let ground = ground.map_err(|error| error.to_string())?;
        let ground = ground.map_err(|error| error.reason)?;
        self.plan_on(record, ground.as_deref())
    }

    /// Where a template's snapshot is.
    fn template_directory(&self, name: &str) -> PathBuf {
        let snapshots = self.config.state_dir.join("snapshots");
        snapshots.join(FOLDER).join(name)
    }

    /// The template to make a function of, or why it has to be started from nothing.
    /// Makes the template if there is none yet.
    pub(crate) async fn template_for(
        &self,
        kind: SandboxChoice,
        revision: &Revision,
    ) -> Result<Template, String> {
        let plan = self.template_plan(kind, &revision.record).await?;
        fit::check(&plan, revision)?;
        let slot = self.templates.slot(&plan.name);
        let mut state = slot.lock().await;
        // One that was removed would take its descendants with it at the next start.
        let is_there = |template: &Template| {
            self.template_directory(&plan.name).exists() && template.image.problem().is_none()
        };
        let known = match &*state {
            State::Ready {
                template,
                is_complete: true,
            } if is_there(template) => return Ok(template.clone()),
            State::Ready { template, .. } if is_there(template) => Some(template.clone()),
            State::Failed(reason) => return Err(reason.clone()),
            State::Ready { .. } | State::Unknown => None,
        };
        let made = match known {
            Some(template) => Ok(template),
            None => match self.load_template(&plan).await {
                Ok(template) => Ok(template),
                Err(_) => self.make_template(&plan).await,
            },
        };
        match made {
            Ok(mut template) => {
                if template.specimen.is_none() {
                    template.specimen = self.specimen(&plan, &template.image, true).await;
                }
                *state = State::Ready {
                    template: template.clone(),
                    is_complete: true,
                };
                Ok(template)
            }
            Err(reason) => {
                tracing::warn!(template = plan.name, reason, "a template could not be made");
                let reason = format!("its template could not be made: {reason}");
                *state = State::Failed(reason.clone());
                Err(reason)
            }
        }
    }

    /// The template that a snapshot found at the start descends from, if it is still what the function would be made of.
    pub(crate) async fn parent_of(
        &self,
        kind: SandboxChoice,
        revision: &Revision,
        parent: &str,
    ) -> Option<Template> {
        let plan = self.template_plan(kind, &revision.record).await.ok()?;
        if plan.name != parent {
            return None;
        }
        let slot = self.templates.slot(parent);
        let mut state = slot.lock().await;
        if let State::Ready { template, .. } = &*state
            && template.image.problem().is_none()
        {
            return Some(template.clone());
        }
        match self.load_template(&plan).await {
            Ok(mut template) => {
                template.specimen = self.specimen(&plan, &template.image, false).await;
                *state = State::Ready {
                    template: template.clone(),
                    is_complete: template.specimen.is_some(),
                };
                Some(template)
            }
            Err(problem) => {
                tracing::warn!(template = plan.name, problem, "a template cannot be used");
                None
            }
        }
    }

    async fn load_template(&self, plan: &TemplatePlan) -> Result<Template, String> {
        let directory = self.template_directory(&plan.name);
        let boot = self.template_boot(plan.sandbox)?;
        let image = boot.load(&directory, &[], Residency::Now).await;
        let image = image.map_err(|error| error.to_string())?;
        Ok(Template::new(&plan.name, image))
    }
}
