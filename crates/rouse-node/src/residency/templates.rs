//! Language templates among the memory that is kept under a budget: as hot as all their functions together.

use std::sync::Arc;
use std::time::Duration;

use super::heat::Reading;
use super::plan::{Action, Candidate, Family};
use super::{Loaded, RELEASE_PAUSE, candidate, move_pages};
use crate::node::Node;
use crate::templates::Template;

/// A template in memory, and the functions whose snapshots are deltas of it.
pub(super) struct LoadedTemplate {
    pub template: Template,
    pub candidate: Candidate,
    /// Indices among the loaded functions.
    functions: Vec<usize>,
    near_pages: u64,
}

impl LoadedTemplate {
    /// For the plan.
    pub fn family(&self) -> Family {
        Family {
            template: self.candidate,
            functions: self.functions.clone(),
        }
    }

    /// Its pages in near memory.
    pub fn near_pages(&self) -> u64 {
        self.near_pages
    }
}

/// All templates that are in memory.
pub(super) fn gather(node: &Node, functions: &[Loaded]) -> Vec<LoadedTemplate> {
    let gathered = node.templates.loaded().into_iter().map(|template| {
        let is_of = |one: &Loaded| one.ready.record.parent.as_deref() == Some(&*template.name);
        let indices: Vec<usize> = (0..functions.len())
            .filter(|index| is_of(&functions[*index]))
            .collect();
        let heat = together(indices.iter().map(|index| functions[*index].candidate.heat));
        // By instances that run, whether their functions are still loaded or not.
        let is_in_use = template.was_released_within(RELEASE_PAUSE);
        let (candidate, near_pages) = candidate(&template.image, heat, is_in_use);
        LoadedTemplate {
            template,
            candidate,
            functions: indices,
            near_pages,
        }
    });
    gathered.collect()
}

/// The heat of what all of these need.
fn together(readings: impl Iterator<Item = Reading>) -> Reading {
    let nobody = Reading {
        rate: 0.0,
        idle: Duration::MAX,
        is_called_again: false,
    };
    readings.fold(nobody, |all, one| Reading {
        rate: all.rate + one.rate,
        idle: all.idle.min(one.idle),
        is_called_again: all.is_called_again || one.is_called_again,
    })
}

/// Does what was decided. Nothing is taken from a template while functions are made of it, or tried: what has absent pages
/// can neither be snapshotted nor forked.
pub(super) async fn act(node: &Arc<Node>, one: &LoadedTemplate, action: Action) {
    let is_needed = node.builds.available_permits() < node.config.max_builds.max(1);
    if matches!(action, Action::Release | Action::Compress) {
        if is_needed {
            return;
        }
        one.template.note_release();
    }
    move_pages(node, &one.template.name, &one.template.image, action).await;
}
