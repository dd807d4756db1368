//! Pagers die, and no instance hangs or reads a wrong byte.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rouse_pool::keeper::{PagerError, PagerEvent};

use crate::Test;
use crate::inside::{Body, Inside};
use crate::moves::{churn, part};
use crate::outside::{Stage, kill};

pub const TESTS: &[Test] = &[
    (
        "pagers_are_killed_hundreds_of_times_under_load",
        killed_under_load,
    ),
    (
        "pagers_are_killed_while_instances_are_registered",
        killed_during_requests,
    ),
    ("a_pager_without_a_keeper_goes_on", keeper_dies),
    ("instances_outlive_the_daemon_in_peace", daemon_dies),
];

const PAGES: u64 = 1500;
const KILLS: u64 = 300;

fn busy() -> Body {
    Box::new(|inside: &Inside| {
        let done = &AtomicBool::new(false);
        let [map, other] = inside.maps[..] else {
            panic!("two pools")
        };
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut moving = part(&map, 0, 150);
                for turn in 0.. {
                    moving = churn(&moving, turn);
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            for turn in 0..2 {
                scope.spawn(move || {
                    while !done.load(Ordering::Relaxed) {
                        part(&map, 150, PAGES - 150).verify_scattered(turn);
                        other.verify_scattered(turn);
                    }
                });
            }
            // Until the test has seen enough.
            inside.ask(1);
            done.store(true, Ordering::Relaxed);
        });
    })
}

fn killed_under_load() {
    let mut stage = Stage::start(vec![busy(), busy(), busy()]);
    let pools = [stage.pool(PAGES), stage.pool(PAGES)];
    let instances = [0, 1, 2].map(|i| stage.launch(i, &[&pools[0], &pools[1]], i == 1));
    let mut generation = 1;
    while generation < KILLS {
        // Somewhere in what it does with the faults that follow. They end when all pages are in again, which may take
        // fewer of them than are waited for.
        let faults = stage.pager.stats().faults;
        loop {
            for pool in &pools {
                stage.pager.evict(&pool.pool, &[0..PAGES]).unwrap();
            }
            if stage.pager.stats().faults >= faults + generation % 40 {
                break;
            }
            thread::yield_now();
        }
        stage.kill_pager();
        let started = stage.event(|event| matches!(event, PagerEvent::Started { .. }));
        let PagerEvent::Started { generation: now } = started else {
            unreachable!("it was chosen")
        };
        assert!(now > generation);
        generation = now;
    }
    for instance in &instances {
        assert_eq!(instance.hear(), Some(1));
        instance.tell(1);
    }
    for instance in instances {
        assert_eq!(instance.wait(), 0);
    }
    assert_eq!(stage.pager.stats().poisoned_pages, 0);
    drop(pools);
    stage.end();
}

fn killed_during_requests() {
    const INSTANCES: usize = 40;
    let body = || -> Body { Box::new(|inside: &Inside| inside.maps[0].verify_scattered(1)) };
    let mut stage = Stage::start((0..INSTANCES).map(|_| body()).collect());
    let pager = stage.pager.clone();
    let stop = &AtomicBool::new(false);
    let steps = &AtomicU64::new(0);
    let step = || steps.fetch_add(1, Ordering::Relaxed);
    thread::scope(|scope| {
        scope.spawn(move || {
            // Some before they have begun, some in the middle.
            for turn in 0.. {
                thread::sleep(std::time::Duration::from_millis(turn * 7 % 30));
                kill(pager.pager_pid() as i32);
                // Some live long enough, however slow they are.
                let before = steps.load(Ordering::Relaxed);
                let is_done = || stop.load(Ordering::Relaxed);
                while turn % 8 == 7 && steps.load(Ordering::Relaxed) == before && !is_done() {
                    thread::yield_now();
                }
                if is_done() {
                    break;
                }
            }
        });
        for i in 0..INSTANCES {
            let pool = stage.pool(400);
            step();
            let instance = stage.launch(i, &[&pool], i % 2 == 0);
            step();
            assert_eq!(instance.wait(), 0);
            step();
            let pinned = pool.pool.pin().unwrap();
            step();
            assert_eq!(pool.pool.resident_pages().unwrap(), 400);
            drop(pinned);
            stage.pager.evict(&pool.pool, &[0..400]).unwrap();
            step();
            assert_eq!(pool.pool.resident_pages().unwrap(), 0);
            stage.remove(&pool);
            step();
        }
        stop.store(true, Ordering::Relaxed);
    });
    stage.end();
}

/// Waits until a process waits for a page. Fails if it ends instead.
fn wait_until_stuck(pid: i32) {
    loop {
        let place = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap();
        assert_ne!(place, "do_exit");
        if place.contains("userfault") {
            return;
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(!status.contains("zombie"), "it has read something");
        thread::yield_now();
    }
}

fn keeper_dies() {
    let body = |inside: &Inside| {
        let map = inside.maps[0];
        map.verify(0..100);
        inside.ask(1);
        map.verify(100..200);
        inside.ask(2);
        // Nobody answers any more: this must not end.
        let _ = map.read(1000);
    };
    let mut stage = Stage::start(vec![Box::new(body)]);
    let pool = stage.pool(PAGES);
    let instance = stage.launch(0, &[&pool], false);
    assert_eq!(instance.hear(), Some(1));
    kill(stage.keeper as i32);
    stage.event(|event| *event == PagerEvent::KeeperLost);
    instance.tell(1);
    assert_eq!(instance.hear(), Some(2));
    stage.kill_pager();
    stage.event(|event| *event == PagerEvent::Gone);
    instance.tell(1);
    wait_until_stuck(instance.pid);
    assert!(matches!(
        stage.pager.prefetch(&pool.pool),
        Err(PagerError::Gone)
    ));
    instance.kill();
    drop(pool);
    stage.end();
}

fn daemon_dies() {
    let body = |inside: &Inside| {
        let map = inside.maps[0];
        map.verify(0..10);
        inside.ask(1);
        map.verify_scattered(1);
    };
    let mut stage = Stage::start(vec![Box::new(body), Box::new(body)]);
    let pool = stage.pool(PAGES);
    let instances = [0, 1].map(|i| stage.launch(i, &[&pool], false));
    for instance in &instances {
        assert_eq!(instance.hear(), Some(1));
    }
    let pager = stage.pager.clone();
    thread::scope(|scope| {
        // Closes the socket, and returns when keeper and pager have ended.
        let ended = scope.spawn(|| pager.shutdown());
        stage.event(|event| *event == PagerEvent::Gone);
        // Even now pagers may die.
        stage.kill_pager();
        for instance in &instances {
            instance.tell(1);
        }
        for instance in instances {
            assert_eq!(instance.wait(), 0);
        }
        ended.join().unwrap();
    });
}
