//! No memory for a page. The pager's control group is charged for all pools.

use std::fs;
use std::path::{Path, PathBuf};

use rouse_pool::keeper::{DamageReason, PageFault, PagerEvent};

use crate::Test;
use crate::inside::{Body, Inside};
use crate::outside::Stage;

pub const TESTS: &[Test] = &[
    ("faults_wait_until_there_is_memory", room_is_made),
    ("without_memory_who_waits_gets_a_signal", no_room),
];

/// 64 MiB, in a group that may have much less.
const PAGES: u64 = 16 * 1024;
const LIMIT: &str = "33554432";

/// A control group with little memory.
struct Group {
    path: PathBuf,
}

impl Group {
    /// `None` where no group can limit memory.
    fn new() -> Option<Group> {
        let (root, limit) = [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ]
        .into_iter()
        .find(|(root, _)| {
            Path::new(root).join("memory.limit_in_bytes").exists()
                || fs::read_to_string(Path::new(root).join("cgroup.subtree_control"))
                    .is_ok_and(|controllers| controllers.contains("memory"))
        })?;
        let path = Path::new(root).join(format!("rouse-pager-test-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        fs::write(path.join(limit), LIMIT).unwrap();
        // Otherwise the kernel kills the pager, which is not what is tested here: without
        // CAP_SYS_RESOURCE it cannot ask not to be chosen.
        let _ = fs::write(path.join("memory.oom_control"), "1");
        // Swapping would make room without end.
        for file in ["memory.memsw.limit_in_bytes", "memory.swap.max"] {
            let _ = fs::write(
                path.join(file),
                if file.contains("max") { "0" } else { LIMIT },
            );
        }
        Some(Group { path })
    }

    fn add(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        while fs::remove_dir(&self.path).is_err() {
            assert!(self.path.exists());
            std::thread::yield_now();
        }
    }
}

fn body() -> Body {
    Box::new(|inside: &Inside| inside.maps[0].verify(0..PAGES))
}

fn room_is_made() {
    let Some(group) = Group::new() else {
        return println!("no control group can limit memory here");
    };
    let mut stage = Stage::start(vec![body()]);
    group.add(stage.pager.pager_pid());
    let pool = stage.pool(PAGES);
    let instance = stage.launch(0, &[&pool], false);
    // Until it is done: whenever memory runs out, all that is in is taken out.
    let mut shortages = 0;
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || instance.wait());
        while !waiting.is_finished() {
            match stage.events.try_recv() {
                Ok(PagerEvent::Damaged {
                    reason: DamageReason::OutOfMemory,
                    ..
                }) => {
                    shortages += 1;
                    stage.pager.evict(&pool.pool, &[0..PAGES]).unwrap();
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => std::thread::yield_now(),
            }
        }
        assert_eq!(waiting.join().unwrap(), 0);
    });
    assert!(shortages > 0);
    assert_eq!(stage.pager.stats().generation, 1);
    assert_eq!(stage.pager.stats().poisoned_pages, 0);
    drop(pool);
    stage.end();
    drop(group);
}

fn no_room() {
    let Some(group) = Group::new() else {
        return println!("no control group can limit memory here");
    };
    let mut stage = Stage::start(vec![body()]);
    group.add(stage.pager.pager_pid());
    let pool = stage.pool(PAGES);
    let instance = stage.launch(0, &[&pool], false);
    let token = instance.token();
    let event = stage.event(|event| matches!(event, PagerEvent::Damaged { .. }));
    assert!(
        matches!(event, PagerEvent::Damaged { instance, reason: DamageReason::OutOfMemory, .. }
            if instance == Some(token)),
        "{event:?}"
    );
    let (status, registration) = instance.end();
    assert_eq!(status, -libc::SIGBUS);
    let fault = stage.pager.fault_of(token).unwrap();
    assert!(matches!(fault, Some(PageFault::NoMemory(_))), "{fault:?}");
    drop(registration);
    assert_eq!(stage.pager.fault_of(token).unwrap(), None);
    assert_eq!(stage.pager.stats().generation, 1);
    drop(pool);
    stage.end();
    drop(group);
}
