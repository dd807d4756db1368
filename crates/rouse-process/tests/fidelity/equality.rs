//! Is a rewound instance what a fresh one is? Both wait before their first own instruction, and are compared from
//! outside: all memory byte for byte, and what the kernel says of them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rouse_snapshot::model::ProcessSnapshot;

/// The restorer's own pages: what it writes there depends on when it ran.
const PROGRAM: &str = "/memfd:rouse-program";
/// Flags that tell what was written since somebody asked, or that memory was counted once.
const PASSING_FLAGS: [&str; 2] = ["sd", "ac"];

/// The first difference, if there is any.
pub fn difference(snapshot: &ProcessSnapshot, fresh: i32, rewound: i32) -> Option<String> {
    let compared = || -> io::Result<Option<String>> {
        let (then, now) = (state(snapshot, fresh)?, state(snapshot, rewound)?);
        let keys: Vec<&String> = then.keys().chain(now.keys()).collect();
        if let Some(key) = keys.into_iter().find(|key| then.get(*key) != now.get(*key)) {
            let (then, now) = (then.get(key), now.get(key));
            return Ok(Some(format!("{key}: {now:?} instead of {then:?}")));
        }
        memory(snapshot, fresh, rewound)
    };
    compared().unwrap_or_else(|error| Some(format!("they cannot be compared: {error}")))
}

fn state(snapshot: &ProcessSnapshot, pid: i32) -> io::Result<BTreeMap<String, String>> {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let read = |name: &str| fs::read_to_string(proc.join(name));
    let mut found = BTreeMap::new();
    let mut put = |name: &str, text: String| found.insert(name.to_owned(), text);
    for name in [
        "limits",
        "comm",
        "cmdline",
        "environ",
        "timers",
        "timerslack_ns",
        "oom_score_adj",
    ] {
        put(
            name,
            fs::read(proc.join(name)).map(|b| String::from_utf8_lossy(&b).into_owned())?,
        );
    }
    for name in ["cwd", "exe", "root"] {
        put(name, fs::read_link(proc.join(name))?.display().to_string());
    }
    put(
        "areas",
        areas(pid)?
            .into_iter()
            .map(|area| area.text + "\n")
            .collect(),
    );
    let stat = read("stat")?;
    let fields: Vec<&str> = stat
        .rsplit(") ")
        .next()
        .unwrap_or_default()
        .split(' ')
        .collect();
    // Numbers as in proc(5), less the two fields before the name ends: priority, nice, threads, start of code, end of
    // code, start of stack, rt priority, policy, start and end of data, break, arguments, environment.
    for number in [18, 19, 20, 26, 27, 28, 40, 41, 45, 46, 47, 48, 49, 50, 51] {
        put(&format!("stat {number}"), fields[number - 3].to_owned());
    }
    for entry in fs::read_dir(proc.join("task"))? {
        let task = entry?.path();
        let status = fs::read_to_string(task.join("status"))?;
        let value = |key: &str| {
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.unwrap_or_default().trim().to_owned()
        };
        let id = value("NSpid")
            .split_whitespace()
            .last()
            .unwrap_or_default()
            .to_owned();
        for key in [
            "Name",
            "Umask",
            "SigPnd",
            "ShdPnd",
            "SigBlk",
            "SigIgn",
            "SigCgt",
            "CapEff",
            "CapPrm",
            "CapBnd",
            "NoNewPrivs",
            "Seccomp",
            "Seccomp_filters",
            "Cpus_allowed",
            "THP_enabled",
        ] {
            put(&format!("thread {id} {key}"), value(key));
        }
        put(&format!("thread {id}"), String::new());
    }
    for entry in fs::read_dir(proc.join("fd"))? {
        let fd = entry?.file_name().to_string_lossy().into_owned();
        let target = fs::read_link(proc.join("fd").join(&fd))?
            .display()
            .to_string();
        // Numbers of pipes and sockets are the kernel's.
        let target = target.split('[').next().unwrap_or_default().to_owned();
        let control = target.starts_with("socket") && !is_known(snapshot, &fd);
        if control {
            continue;
        }
        let info = read(&format!("fdinfo/{fd}"))?;
        let lasting = |line: &&str| {
            ["pos:", "flags:", "eventfd-count:", "clockid:", "sigmask:"]
                .iter()
                .any(|key| line.starts_with(key))
        };
        let info: Vec<&str> = info.lines().filter(lasting).collect();
        put(&format!("descriptor {fd}"), format!("{target} {info:?}"));
    }
    for directory in ["tmp", "dev/shm"] {
        let root = proc.join("root").join(directory);
        tree(&root, &root, &mut |name, text| {
            found.insert(format!("/{directory}{name}"), text);
        })?;
    }
    Ok(found)
}

fn is_known(snapshot: &ProcessSnapshot, fd: &str) -> bool {
    snapshot.descriptors.iter().any(|d| d.fd.to_string() == fd)
}

fn tree(root: &Path, at: &Path, put: &mut dyn FnMut(String, String)) -> io::Result<()> {
    for entry in fs::read_dir(at)? {
        let path = entry?.path();
        let about = fs::symlink_metadata(&path)?;
        let contents = match (about.is_file(), about.is_symlink()) {
            (true, _) => contents(&path, about.len())?,
            (_, true) => fs::read_link(&path)?.display().to_string(),
            _ => String::new(),
        };
        let name = path.strip_prefix(root).unwrap_or(&path).display();
        let size = if about.is_dir() { 0 } else { about.len() };
        let text = format!(
            "{:o} {size} {} {} {contents}",
            about.mode(),
            about.mtime(),
            about.nlink()
        );
        put(format!("/{name}"), text);
        if about.is_dir() {
            tree(root, &path, put)?;
        }
    }
    Ok(())
}

/// The beginning of a file, which may be a large hole. It must not seem to have been read.
fn contents(path: &Path, len: u64) -> io::Result<String> {
    const MOST: u64 = 16 << 20;
    let file = fs::File::options()
        .read(true)
        .custom_flags(libc::O_NOATIME)
        .open(path)?;
    let mut bytes = vec![0; len.min(MOST) as usize];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Area {
    range: Range<u64>,
    is_special: bool,
    text: String,
}

/// Mappings with their flags; inode numbers of memory that each instance makes for itself are left out.
fn areas(pid: i32) -> io::Result<Vec<Area>> {
    let mut areas: Vec<Area> = Vec::new();
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let Some((start, end)) = words[0].split_once('-') {
            let number = |text| u64::from_str_radix(text, 16).map_err(io::Error::other);
            let name = words.get(5).copied().unwrap_or_default();
            // Each has a `/tmp` of its own.
            let own = words[1].ends_with('s') && name.starts_with("/memfd:");
            let place = match own || name.starts_with("/tmp/") {
                true => String::new(),
                false => format!("{} {}", words[3], words[4]),
            };
            areas.push(Area {
                range: number(start)?..number(end)?,
                is_special: name.starts_with("[v"),
                text: format!("{} {} {} {place} {name}", words[0], words[1], words[2]),
            });
        } else if let (Some(area), "VmFlags:") = (areas.last_mut(), words[0]) {
            let flags = words[1..]
                .iter()
                .filter(|flag| !PASSING_FLAGS.contains(flag));
            area.text += &flags.map(|flag| format!(" {flag}")).collect::<String>();
        }
    }
    areas.retain(|area| !area.text.contains(PROGRAM));
    Ok(areas)
}

fn memory(snapshot: &ProcessSnapshot, fresh: i32, rewound: i32) -> io::Result<Option<String>> {
    let [then, now] = [fresh, rewound].map(|pid| fs::File::open(format!("/proc/{pid}/mem")));
    let (then, now) = (then?, now?);
    const PIECE: usize = 1 << 20;
    let (mut one, mut other) = (vec![0; PIECE], vec![0; PIECE]);
    for area in areas(fresh)?.iter().filter(|area| !area.is_special) {
        let mut at = area.range.start;
        while at < area.range.end {
            let len = PIECE.min((area.range.end - at) as usize);
            let (one, other) = (&mut one[..len], &mut other[..len]);
            // A guard page, or the end of a file below its mapping, can be read in neither.
            let read = [then.read_exact_at(one, at), now.read_exact_at(other, at)];
            if read.iter().any(Result::is_err) {
                if read.iter().any(Result::is_ok) {
                    return Ok(Some(format!("only one can be read at {at:x}")));
                }
                at += len as u64;
                continue;
            }
            let differs =
                |i: &usize| one[*i] != other[*i] && !is_of_kernel(snapshot, at + *i as u64);
            let mut places = 0..if one == other { 0 } else { len };
            if let Some(i) = places.find(differs) {
                let (then, now) = (one[i], other[i]);
                return Ok(Some(format!(
                    "memory at {:x}: {now:x} instead of {then:x} in {}",
                    at + i as u64,
                    area.text
                )));
            }
            at += len as u64;
        }
    }
    Ok(None)
}

/// Does the kernel write there on what processor a thread runs?
fn is_of_kernel(snapshot: &ProcessSnapshot, address: u64) -> bool {
    let areas = snapshot
        .threads
        .iter()
        .filter_map(|thread| thread.rseq.as_ref());
    areas
        .into_iter()
        .any(|rseq| (rseq.address..rseq.address + u64::from(rseq.len)).contains(&address))
}
