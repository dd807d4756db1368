//! The order in which a process first touches its pages is seen exactly.

use rouse_pool::keeper::PagerEvent;
use rouse_pool::{PoolId, TouchRecord};

use crate::Test;
use crate::contents::PAGE;
use crate::inside::{Body, Inside, in_child};
use crate::moves::{part, relocate, reserve};
use crate::outside::{Stage, TestPool};

pub const TESTS: &[Test] = &[
    ("first_touches_are_recorded_in_their_order", absent),
    ("touches_of_present_pages_are_recorded_too", present),
    ("moved_memory_is_recorded_by_what_it_was", moved),
    ("what_a_recorded_process_forks_is_served", forked),
    ("pagers_are_killed_while_touches_are_recorded", killed),
];

const PAGES: u64 = 1500;

/// All pages, shuffled.
fn scrambled(seed: u64) -> Vec<u64> {
    let mut order: Vec<u64> = (0..PAGES).collect();
    let mut state = seed;
    for i in (1..order.len()).rev() {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        order.swap(i, (state >> 33) as usize % (i + 1));
    }
    order
}

/// Reads or writes each page, by its number.
fn touch_all(order: Vec<u64>) -> Body {
    Box::new(move |inside: &Inside| {
        let map = inside.maps[0];
        for page in &order {
            match page % 3 {
                // SAFETY: mapped, writable memory of this process.
                0 => unsafe { map.at(*page).add(PAGE - 1).write(7) },
                _ => map.verify_page(*page),
            }
            // Touching it again says nothing.
            map.read(order[0]);
        }
        inside.ask(1);
        // What was written is a copy of the right page.
        for page in order.iter().filter(|page| *page % 3 == 0) {
            let found = map.read(*page);
            let mut expected = [0; PAGE];
            crate::contents::page(map.seed, *page, &mut expected);
            expected[PAGE - 1] = 7;
            assert!(found == expected, "page {page}");
        }
    })
}

fn of(pool: &TestPool, pages: &[u64]) -> Vec<(PoolId, u64)> {
    pages.iter().map(|page| (pool.pool.id(), *page)).collect()
}

/// Runs a body that touches all pages in this order, and asks once.
fn check(stage: &mut Stage, instance: usize, pool: &TestPool, prefetch: bool, order: &[u64]) {
    let record = TouchRecord::new().unwrap();
    let running = stage.launch_recorded(instance, &[pool], prefetch, &record);
    assert_eq!(running.hear(), Some(1));
    assert_eq!(record.read().unwrap(), of(pool, order));
    running.tell(1);
    assert_eq!(running.wait(), 0);
    assert_eq!(record.read().unwrap().len(), order.len());
}

fn absent() {
    let orders = [scrambled(1), scrambled(2)];
    let bodies = orders.iter().cloned().map(touch_all).collect();
    let mut stage = Stage::start(bodies);
    for (instance, order) in orders.iter().enumerate() {
        let pool = stage.pool(PAGES);
        check(&mut stage, instance, &pool, instance == 1, order);
    }
    let stats = stage.pager.stats();
    assert_eq!((stats.rescues, stats.poisoned_pages), (0, 0));
    stage.end();
}

fn present() {
    let order = scrambled(3);
    let mut stage = Stage::start(vec![touch_all(order.clone())]);
    let pool = stage.pool(PAGES);
    let pinned = pool.pool.pin().unwrap();
    let before = stage.pager.stats().pools[&pool.pool.id()];
    check(&mut stage, 0, &pool, false, &order);
    // Nothing had to be filled, or looked up in the page map.
    assert_eq!(stage.pager.stats().pools[&pool.pool.id()], before);
    drop(pinned);
    stage.end();
}

fn moved() {
    let body = |inside: &Inside| {
        let map = inside.maps[0];
        map.verify(10..12);
        let there = relocate(&map, 100, 50, reserve(50));
        there.verify(7..9);
        part(&map, 200, 3).verify(0..3);
        inside.ask(1);
    };
    let mut stage = Stage::start(vec![Box::new(body)]);
    let pool = stage.pool(PAGES);
    let record = TouchRecord::new().unwrap();
    let running = stage.launch_recorded(0, &[&pool], false, &record);
    assert_eq!(running.hear(), Some(1));
    let expected = of(&pool, &[10, 11, 107, 108, 200, 201, 202]);
    assert_eq!(record.read().unwrap(), expected);
    running.tell(1);
    assert_eq!(running.wait(), 0);
    stage.end();
}

fn forked() {
    let body = |inside: &Inside| {
        let map = inside.maps[0];
        map.verify(0..20);
        in_child(|| map.verify_scattered(1));
        map.verify(30..40);
        inside.ask(1);
    };
    let mut stage = Stage::start(vec![Box::new(body)]);
    let pool = stage.pool(PAGES);
    let record = TouchRecord::new().unwrap();
    let running = stage.launch_recorded(0, &[&pool], false, &record);
    assert_eq!(running.hear(), Some(1));
    let own: Vec<u64> = (0..20).chain(30..40).collect();
    assert_eq!(record.read().unwrap(), of(&pool, &own));
    running.tell(1);
    assert_eq!(running.wait(), 0);
    let stats = stage.pager.stats();
    assert_eq!((stats.rescues, stats.poisoned_pages), (0, 0));
    stage.end();
}

/// A pager may die between seeing a touch and writing it down. Then the thread faults again, so nothing is lost.
fn killed() {
    let order = scrambled(4);
    let mut stage = Stage::start(vec![touch_all(order.clone())]);
    let pool = stage.pool(PAGES);
    let record = TouchRecord::new().unwrap();
    let running = stage.launch_recorded(0, &[&pool], false, &record);
    for kill in 1..=20 {
        while record.read().unwrap().len() < kill * 60 {
            std::thread::yield_now();
        }
        stage.kill_pager();
        stage.event(|event| matches!(event, PagerEvent::Started { .. }));
    }
    assert_eq!(running.hear(), Some(1));
    assert_eq!(record.read().unwrap(), of(&pool, &order));
    running.tell(1);
    assert_eq!(running.wait(), 0);
    stage.end();
}
