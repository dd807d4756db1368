//! Damaged packs: never a wrong byte.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rouse_pool::keeper::{DamageReason, PageFault, PagerError, PagerEvent};
use rouse_snapshot::page_map::{PackId, PageMap, Piece};

use crate::Test;
use crate::contents::{COLD_PACK, HOT_PACK, Stored};
use crate::inside::{Body, Inside, in_child};
use crate::outside::Stage;

pub const TESTS: &[Test] = &[
    ("a_flipped_bit_ends_who_reads_it_and_nobody_else", flipped),
    ("any_flipped_byte_is_found", flipped_anywhere),
    ("a_pack_that_is_cut_off_is_named", cut_off),
    ("a_pack_that_is_missing_is_named", missing),
    ("another_page_map_is_refused", other_map),
    (
        "a_damaged_working_set_does_not_stop_a_start",
        damaged_working_set,
    ),
];

const PAGES: u64 = 1500;

fn pack(source: &Stored, pack: PackId) -> PathBuf {
    source.packs.path_of(pack)
}

fn map(source: &Stored) -> PageMap {
    PageMap::decode(&fs::read(&source.page_map).unwrap()).unwrap()
}

/// A piece in a pack.
fn victim(source: &Stored, pack: PackId) -> Piece {
    let map = map(source);
    let pieces = map.pieces().iter();
    let in_pack = pieces.filter(|piece| piece.chunk().is_some_and(|chunk| chunk.pack == pack));
    *in_pack.clone().nth(in_pack.count() / 2).unwrap()
}

fn flip(source: &Stored, piece: &Piece, at: u64) {
    let chunk = piece.chunk().unwrap();
    let path = pack(source, chunk.pack);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let at = chunk.offset + at % u64::from(chunk.stored_len);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// Reads all pages but those of a piece that the test names, then that.
fn careful() -> Body {
    Box::new(|inside: &Inside| {
        let map = inside.maps[0];
        let (first, pages) = (inside.ask(1), inside.ask(2));
        map.verify(0..first);
        map.verify(first + pages..map.pages);
        inside.ask(3);
        // Never returns.
        let _ = map.read(first + pages / 2);
    })
}

fn expect_damage(stage: &Stage, page: u64, instance: Option<u64>, reason: DamageReason) {
    let event = stage.event(|event| matches!(event, PagerEvent::Damaged { .. }));
    let PagerEvent::Damaged {
        page: found_page,
        instance: found_instance,
        reason: found_reason,
        ..
    } = &event
    else {
        unreachable!("it was chosen")
    };
    assert_eq!(
        (*found_page, *found_instance, *found_reason),
        (page, instance, reason),
        "{event:?}"
    );
}

/// Lets two instances read a pool with one piece that cannot be filled.
fn check_damage(damage: impl Fn(&Stored, &Piece), reason: DamageReason) {
    let mut stage = Stage::start(vec![careful(), careful()]);
    let mut piece = None;
    let pool = stage.pool_with(PAGES, |source| {
        // The last one of its pack, so that files can be cut off there.
        let map = map(source);
        let last = map
            .pieces()
            .iter()
            .filter(|piece| piece.chunk().is_some_and(|chunk| chunk.pack == COLD_PACK));
        let last = *last
            .max_by_key(|piece| piece.chunk().unwrap().offset)
            .unwrap();
        damage(source, &last);
        piece = Some(last);
    });
    let piece = piece.unwrap();
    for i in 0..2 {
        let instance = stage.launch(i, &[&pool], true);
        instance.hear().unwrap();
        instance.tell(piece.first_page);
        instance.hear().unwrap();
        instance.tell(u64::from(piece.pages));
        instance.hear().unwrap();
        instance.tell(0);
        let token = instance.token();
        let (status, _registration) = instance.end();
        assert_eq!(status, -libc::SIGBUS);
        // Known at once, whatever else has become of the news of it, and of the pager.
        if i == 1 {
            stage.kill_pager();
        }
        let fault = stage.pager.fault_of(token).unwrap();
        assert!(matches!(fault, Some(PageFault::Damaged(_))), "{fault:?}");
        assert_eq!(stage.pager.fault_of(token + 100).unwrap(), None);
        expect_damage(&stage, piece.first_page, Some(token), reason);
    }
    stage.settle(&pool);
    let stats = stage.pager.stats();
    assert_eq!(stats.poisoned_pages, 2);
    assert_eq!(stats.pools[&pool.pool.id()].damaged_pieces, 2);
    let refused = pool.pool.pin().map(drop);
    assert!(
        matches!(refused, Err(PagerError::Damaged(_) | PagerError::Kernel(_))),
        "{refused:?}"
    );
    expect_damage(&stage, piece.first_page, None, reason);
    drop(pool);
    stage.end();
}

fn flipped() {
    check_damage(
        |source, piece| flip(source, piece, 1000),
        DamageReason::Verification,
    );
}

fn cut_off() {
    check_damage(
        |source, piece| {
            let path = pack(source, COLD_PACK);
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(piece.chunk().unwrap().offset + 1).unwrap();
        },
        DamageReason::Io,
    );
}

fn flipped_anywhere() {
    let body = |inside: &Inside| {
        let map = inside.maps[0];
        // Each page is read by a process of its own, because damaged ones end it.
        for page in 0..map.pages {
            match inside.ask(page) {
                0 => in_child(|| map.verify_page(page)),
                _ => {
                    // SAFETY: as in `in_child`.
                    let pid = unsafe { libc::fork() };
                    if pid == 0 {
                        let _ = map.read(page);
                        // SAFETY: ends the process.
                        unsafe { libc::_exit(0) };
                    }
                    assert_eq!(crate::inside::wait(pid), -libc::SIGBUS, "page {page}");
                }
            }
        }
    };
    let mut stage = Stage::start(vec![Box::new(body)]);
    let mut damaged = vec![false; 300];
    let pool = stage.pool_with(300, |source| {
        for (index, piece) in map(source).pieces().iter().enumerate() {
            if piece.chunk().is_some() && index % 2 == 0 {
                flip(source, piece, index as u64 * 7919);
                piece.range().for_each(|page| damaged[page as usize] = true);
            }
        }
    });
    assert!(damaged.contains(&true) && damaged.contains(&false));
    let instance = stage.launch(0, &[&pool], false);
    while let Some(page) = instance.hear() {
        instance.tell(u64::from(damaged[page as usize]));
    }
    assert_eq!(instance.wait(), 0);
    drop(pool);
    stage.end();
}

fn missing() {
    let mut stage = Stage::start(vec![Box::new(|inside: &Inside| {
        let first = inside.ask(1);
        inside.maps[0].verify_page(first);
    })]);
    let mut piece = None;
    let pool = stage.pool_with(PAGES, |source| {
        piece = Some(victim(source, COLD_PACK));
        fs::remove_file(pack(source, COLD_PACK)).unwrap();
    });
    let piece = piece.unwrap();
    // What lies in the other pack is there all the same.
    let instance = stage.launch(0, &[&pool], true);
    instance.hear().unwrap();
    instance.tell(piece.first_page);
    let token = Some(instance.token());
    expect_damage(&stage, piece.first_page, token, DamageReason::Io);
    assert_eq!(instance.wait(), -libc::SIGBUS);
    drop(pool);
    stage.end();
}

fn other_map() {
    let mut stage = Stage::start(vec![Box::new(|inside: &Inside| {
        let _ = inside.maps[0].read(7);
    })]);
    // A valid map, but not the one that the manifest names.
    let pool = stage.pool_with(PAGES, |source| source.digest[0] ^= 1);
    let instance = stage.launch(0, &[&pool], false);
    let token = Some(instance.token());
    expect_damage(&stage, 7, token, DamageReason::Verification);
    assert_eq!(instance.wait(), -libc::SIGBUS);
    assert!(pool.pool.pin().is_err());
    drop(pool);
    stage.end();
}

fn damaged_working_set() {
    let mut stage = Stage::start(vec![careful()]);
    let mut piece = None;
    let pool = stage.pool_with(PAGES, |source| {
        let victim = victim(source, HOT_PACK);
        flip(source, &victim, 0);
        piece = Some(victim);
    });
    let piece = piece.unwrap();
    let instance = stage.launch(0, &[&pool], true);
    expect_damage(&stage, piece.first_page, None, DamageReason::Verification);
    for answer in [piece.first_page, u64::from(piece.pages), 0] {
        instance.hear().unwrap();
        instance.tell(answer);
    }
    assert_eq!(instance.wait(), -libc::SIGBUS);
    let missing = stage.pager.prefetch(&pool.pool).unwrap();
    assert_eq!(missing, u64::from(piece.pages));
    drop(pool);
    stage.end();
}
