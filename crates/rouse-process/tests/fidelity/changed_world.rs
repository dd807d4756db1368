//! Files that change after the snapshot: an image that is loaded, and one that is still to be, must
//! both refuse by the file's name. A host that is another one is refused, too.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rouse_pool::snapshot_store::WriteOptions;
use rouse_snapshot::model::HostFingerprint;

use crate::stage::{Outcome, Stage, chain};

/// Maps a file of its own code, as a runtime does with a native module.
const PROGRAM: &str = "
from prelude import *
data = open('/var/task/module.so', 'rb')
mapped = mmap.mmap(data.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
serve()
";

/// What happens to a file, and what the node then says about it.
type Change = (&'static str, fn(&Path), &'static str);

const CHANGES: [Change; 5] = [
    ("replaced", replace, "was replaced"),
    (
        "rewritten",
        |file| fs::write(file, b"other code").unwrap(),
        "was written",
    ),
    (
        "longer",
        |file| fs::write(file, b"longer code").unwrap(),
        "has another size",
    ),
    ("touched", touch, "was written"),
    (
        "removed",
        |file| fs::remove_file(file).unwrap(),
        "cannot be opened",
    ),
];

fn replace(file: &Path) {
    let other = file.with_extension("new");
    fs::write(&other, b"other code").unwrap();
    fs::rename(other, file).unwrap();
}

fn touch(file: &Path) {
    let now = std::time::SystemTime::now();
    fs::File::options()
        .write(true)
        .open(file)
        .unwrap()
        .set_modified(now)
        .unwrap();
}

pub async fn all(stage: &Stage) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for change in CHANGES {
        println!("changed_world: {}", change.0);
        let failure = one(stage, change).await.err();
        outcomes.push(Outcome::new(
            format!("changed_world: {}", change.0),
            failure,
        ));
    }
    println!("changed_world: host");
    let failure = other_hosts(stage).await.err();
    outcomes.push(Outcome::new("changed_world: host", failure));
    outcomes
}

/// A property of the host that is another one, and what the node then says.
type Move = (fn(&mut HostFingerprint), &'static str);

const MOVES: [Move; 3] = [
    (|host| host.kernel.push('+'), "the kernel differs"),
    (|host| host.vdso[0] ^= 1, "the vDSO differs"),
    (|host| host.cpu[0] ^= 1, "the CPU differs"),
];

async fn other_hosts(stage: &Stage) -> Result<(), String> {
    let spec = stage.spec("host", "from prelude import *\nserve()\n");
    let dir = stage.snapshot("host", &spec).await?;
    let store = stage.store();
    for (number, (change, expected)) in MOVES.into_iter().enumerate() {
        let stored = store.open_snapshot("host").map_err(|e| chain(&e))?;
        let pool = stored.load().map_err(|e| chain(&e))?;
        let mut snapshot = stored.snapshot;
        change(&mut snapshot.host);
        let (parent, name) = (dir.parent().unwrap(), format!("host-{number}"));
        store
            .write(&name, &snapshot, &pool, &WriteOptions::new("default"))
            .map_err(|e| chain(&e))?;
        match stage.load(&parent.join(name), &[]).await {
            Ok(_) => return Err(format!("not noticed that {expected}")),
            Err(error) if chain(&error).contains(expected) => {}
            Err(error) => return Err(chain(&error)),
        }
    }
    Ok(())
}

async fn one(stage: &Stage, (name, change, expected): Change) -> Result<(), String> {
    let spec = stage.spec(name, PROGRAM);
    let file = spec.task_dir.join("module.so");
    fs::write(&file, b"some code ").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let dir = stage.snapshot(name, &spec).await?;
    let image = stage.load(&dir, &[]).await.map_err(|e| chain(&e))?;
    // As it was, it can be used.
    drop(
        stage
            .launcher
            .restore(&image, &spec)
            .await
            .map_err(|e| chain(&e))?,
    );
    drop(
        stage
            .launcher
            .fork(&image, &spec)
            .await
            .map_err(|e| chain(&e))?,
    );

    change(&file);
    let refused = [
        (
            "restore",
            stage
                .launcher
                .restore(&image, &spec)
                .await
                .map(drop)
                .map_err(|e| chain(&e)),
        ),
        (
            "fork",
            stage
                .launcher
                .fork(&image, &spec)
                .await
                .map(drop)
                .map_err(|e| chain(&e)),
        ),
        (
            "load",
            stage.load(&dir, &[]).await.map(drop).map_err(|e| chain(&e)),
        ),
    ];
    for (what, result) in refused {
        match result {
            Ok(()) => return Err(format!("{what} has not noticed")),
            Err(why) if why.contains(expected) && why.contains(&file.display().to_string()) => {}
            Err(why) => return Err(format!("{what} says: {why}")),
        }
    }
    Ok(())
}
