//! `rouse pager`: pages for machines of other VMMs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use rouse_pool::SnapshotStore;
use rouse_pool::firecracker::{self, Contents, FileContents, Served, SnapshotContents};
use rouse_pool::key::{NODE_KEY_FILE, NodeKey};
use rouse_pool::snapshot_store::{StoredSnapshot, WriteOptions};
use rouse_snapshot::model::MemoryImage;

use crate::output::error::Outcome;
use crate::output::{print_json, print_line};
use crate::settings::Settings;

/// What a VMM that has connected may take to say what its memory is.
const PATIENCE: Duration = Duration::from_secs(10);
/// Whose snapshots memory files are: nobody else's share chunks with them.
const TENANT: &str = "memory";

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Serves the memory of Firecracker's machines, by its userfaultfd protocol
///
/// A memory file is served as it is, or stored first: then it is compressed, only what is touched is read, and what the
/// first machine touched is fetched ahead for the next ones.
#[derive(Debug, clap::Args)]
pub struct PagerArgs {
    /// Listen for machines on this socket: `backend_path` of Firecracker's `PUT /snapshot/load`
    #[arg(long, value_name = "SOCKET", required_unless_present = "store")]
    serve: Option<PathBuf>,
    /// Store the memory file under this name
    #[arg(long, value_name = "NAME", conflicts_with_all = ["serve", "snapshot"], requires = "memory_file")]
    store: Option<String>,
    /// Serve what was stored under this name
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "memory_file",
        conflicts_with = "memory_file"
    )]
    snapshot: Option<String>,
    /// The memory file of a Firecracker snapshot. It must not change while a machine lives
    #[arg(long, value_name = "FILE")]
    memory_file: Option<PathBuf>,
    /// Where memory files are stored: a directory of its own, not that of a node
    #[arg(long, value_name = "DIR")]
    store_dir: Option<PathBuf>,
    /// End with the first machine
    #[arg(long)]
    once: bool,
    /// Print JSON on standard output
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &PagerArgs) -> Outcome {
    match (&args.store, &args.memory_file, &args.serve) {
        (Some(name), Some(file), _) => store(args, name, file),
        (_, _, Some(socket)) => serve(args, socket),
        _ => Err("give --serve, or --store with --memory-file".into()),
    }
}

impl PagerArgs {
    fn open_store(&self) -> Result<SnapshotStore, AnyError> {
        let root = match &self.store_dir {
            Some(root) => root.clone(),
            None => Settings::defaults()
                .state_dir
                .ok_or("the directory of memory files has no default: give --store-dir")?
                .join("memory-files"),
        };
        let root = std::path::absolute(root)?;
        fs::create_dir_all(&root)?;
        let key = NodeKey::load_or_create(&root.join(NODE_KEY_FILE))?;
        Ok(SnapshotStore::open(&root, key)?)
    }

    /// What one machine is served from. Opened for each anew: what was learnt meanwhile counts.
    fn contents(&self) -> Result<Source, AnyError> {
        match (&self.snapshot, &self.memory_file) {
            (Some(name), _) => {
                let store = self.open_store()?;
                let stored: StoredSnapshot<MemoryImage> = store.open_as(name)?;
                let image = stored.snapshot.clone();
                let learn = stored.map.hot_extent().is_none();
                Ok(Source {
                    contents: Box::new(SnapshotContents::new(stored)?),
                    learn: learn.then(|| (store, name.clone(), image)),
                })
            }
            (None, Some(path)) => Ok(Source {
                contents: Box::new(FileContents::new(File::open(path)?)?),
                learn: None,
            }),
            (None, None) => Err("give --snapshot or --memory-file".into()),
        }
    }
}

struct Source {
    contents: Box<dyn Contents>,
    /// Where to write down what the machine touches first, if nothing is known of that yet.
    learn: Option<(SnapshotStore, String, MemoryImage)>,
}

fn store(args: &PagerArgs, name: &str, file: &Path) -> Outcome {
    let store = args.open_store()?;
    let file =
        File::open(file).map_err(|error| format!("cannot open {}: {error}", file.display()))?;
    let (image, pool) = firecracker::import(file)?;
    let report = store.write(name, &image, &pool, &WriteOptions::new(TENANT))?;
    let (bytes, stored) = (image.pages * 4096, report.pack_bytes);
    match args.json {
        true => print_json(&serde_json::json!({ "memoryBytes": bytes, "storedBytes": stored }))?,
        false => print_line(format_args!("{name}: {bytes} bytes of memory in {stored}"))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn serve(args: &PagerArgs, socket: &Path) -> Outcome {
    // What cannot be served is said at once, not to the first machine.
    drop(args.contents()?);
    let listener = listen(socket)?;
    let _remover = Remover(socket);
    print_line(format_args!("serving on {}", socket.display()))?;
    if args.once {
        let (stream, _) = listener.accept()?;
        return report(args, &machine(args, &stream)?).map(|()| ExitCode::SUCCESS);
    }
    std::thread::scope(|scope| {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            // A thread for each: none waits for another's pages.
            scope.spawn(move || match machine(args, &stream) {
                Ok(served) => drop(report(args, &served)),
                Err(error) => tell(&*error),
            });
        }
    })
}

/// A socket that a process which was killed has left is taken over; one that somebody listens on is not.
fn listen(socket: &Path) -> Result<UnixListener, AnyError> {
    match UnixListener::bind(socket) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let is_socket = fs::symlink_metadata(socket)?.file_type().is_socket();
            if !is_socket || UnixStream::connect(socket).is_ok() {
                return Err(format!("{} is in use", socket.display()).into());
            }
            fs::remove_file(socket)?;
            Ok(UnixListener::bind(socket)?)
        }
        other => {
            other.map_err(|error| format!("cannot listen on {}: {error}", socket.display()).into())
        }
    }
}

struct Remover<'a>(&'a Path);

impl Drop for Remover<'_> {
    fn drop(&mut self) {
        drop(fs::remove_file(self.0));
    }
}

fn machine(args: &PagerArgs, stream: &UnixStream) -> Result<Served, AnyError> {
    let source = args.contents()?;
    let handshake = firecracker::receive(stream, source.contents.pages(), PATIENCE)?;
    let served = firecracker::serve(stream, handshake, &*source.contents)?;
    if let Some((store, name, image)) = source.learn {
        let hot = image.pool_pages_of(&served.order);
        let options = WriteOptions {
            hot: &hot,
            ..WriteOptions::new(TENANT)
        };
        store.rewrite(&name, &options)?;
    }
    Ok(served)
}

fn report(args: &PagerArgs, served: &Served) -> Result<(), crate::output::error::Failed> {
    if args.json {
        print_json(&serde_json::json!({
            "faults": served.faults,
            "demandedPages": served.demanded_pages,
            "prefetchedPages": served.prefetched_pages,
            "zeroedPages": served.zeroed_pages,
            "damagedPages": served.damaged_pages,
        }))?;
    } else {
        print_line(format_args!(
            "a machine has ended: {} faults, {} pages on demand, {} ahead, {} zeroed, {} damaged",
            served.faults,
            served.demanded_pages,
            served.prefetched_pages,
            served.zeroed_pages,
            served.damaged_pages,
        ))?;
    }
    Ok(())
}

fn tell(error: &(dyn std::error::Error + 'static)) {
    eprintln!("a machine cannot be served: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprintln!("  caused by: {error}");
        cause = error.source();
    }
}
