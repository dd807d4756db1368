//! Can the node work?

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::node::Node;
use crate::refusal::chain;

impl Node {
    /// Why the node should get no requests, in sentences. Empty when it is ready.
    pub async fn obstacles(self: &Arc<Self>) -> Vec<String> {
        let mut obstacles = Vec::new();
        if self.is_draining.load(Ordering::Relaxed) {
            obstacles.push("it is stopping".to_owned());
        }
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || store.check()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                obstacles.push(format!("its metadata cannot be read: {}", chain(&error)));
            }
            Err(_) => obstacles.push("it is ending".to_owned()),
        }
        obstacles.extend(self.boot.problems().into_iter().map(str::to_owned));
        obstacles
    }

    /// No more requests should be sent here: from now on the node is not ready.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }
}
