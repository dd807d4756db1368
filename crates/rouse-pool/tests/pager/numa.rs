//! Pools that are moved to far memory and back while instances read them. On a machine with one node, nothing moves.

use rouse_pool::NumaNode;

use crate::Test;
use crate::inside::{Body, Inside};
use crate::outside::Stage;

pub const TESTS: &[Test] = &[
    ("pages_come_to_lie_where_they_are_wanted", placed),
    ("pages_move_while_instances_read_them", moved),
];

const PAGES: u64 = 4096;

fn far() -> NumaNode {
    let number = std::env::var("ROUSE_TESTBED_FAR_NODE").ok();
    let node = number.and_then(|number| number.parse().ok()).map(NumaNode);
    node.unwrap_or_else(NumaNode::near)
}

fn placed() {
    let (near, far) = (NumaNode::near(), far());
    assert!(near.has_memory() && far.has_memory());
    let stage = Stage::start(Vec::new());
    let pool = stage.pool(PAGES);
    pool.pool.prefer(far).unwrap();
    let pinned = pool.pool.pin().unwrap();
    assert_eq!(pinned.pages_on(far).unwrap(), PAGES);
    if near != far {
        let hot = [10..20, 4000..5000];
        pinned.move_to(near, &hot).unwrap();
        assert_eq!(pinned.pages_on(near).unwrap(), 10 + 96);
    }
    assert!(pinned.move_to(NumaNode(1000), &[0..1]).is_err());
    assert!(pinned.move_to(NumaNode(4000), &[0..1]).is_err());
    drop((pinned, pool));
    stage.end();
}

fn moved() {
    let (near, far) = (NumaNode::near(), far());
    let body = || -> Body {
        Box::new(|inside: &Inside| {
            for _ in 0..10 {
                inside.maps[0].verify(0..PAGES);
            }
        })
    };
    let mut stage = Stage::start(vec![body(), body()]);
    let pool = stage.pool(PAGES);
    let pinned = pool.pool.pin().unwrap();
    let running: Vec<_> = (0..2)
        .map(|instance| stage.launch(instance, &[&pool], false))
        .collect();
    for _ in 0..3 {
        for node in [far, near] {
            pinned.move_to(node, &[0..PAGES]).unwrap();
        }
    }
    pinned.move_to(far, &[0..PAGES]).unwrap();
    for instance in running {
        assert_eq!(instance.wait(), 0);
    }
    assert_eq!(pinned.pages_on(far).unwrap(), PAGES);
    assert_eq!(pool.pool.resident_pages().unwrap(), PAGES);
    drop((pinned, pool));
    stage.end();
}
