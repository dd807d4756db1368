//! From the kernel's list of mappings to those of a snapshot, with their pages.

use std::ops::Range;
use std::sync::Arc;

use rouse_snapshot::model::{Backing, Mapping, MappingFlags, PageRun};

use super::delta;
use super::error::{CheckpointError, Obstacle, Subject};
use super::files::FileTable;
use super::mappings::Vma;
use super::memory::Memory;
use super::page_map::PageMap;
use super::pages::PageSaver;
use super::shared_memory::SharedObjects;
use super::specimen::{Divided, Specimen};
use crate::image::{Behind, Image};

const PAGE: u64 = 4096;
/// How the kernel names the file of a program of the restorer ([`crate::image`]).
pub(crate) const PROGRAM_PATH: &str = "/memfd:rouse-program";
/// A mapping of a file of at most so many pages, some of them written, is saved whole: one mapping at restore instead of several.
const SMALL_FILE_PAGES: u64 = 32;

/// What the mappings of a process are read with.
pub(super) struct AddressSpace<'a, 'f> {
    pub(super) pid: i32,
    pub(super) memory: &'a Memory,
    pub(super) page_map: PageMap,
    pub(super) files: &'a mut FileTable<'f>,
    pub(super) pages: &'a mut PageSaver,
    pub(super) shared: &'a mut SharedObjects,
    /// Whose pools may be mapped.
    pub(super) lineage: &'a [Arc<Image>],
    /// Whose pages the process may have, without having mapped its pool.
    pub(super) specimen: Option<Specimen<'a>>,
}

/// What lies behind a mapping, before its pages are looked at.
enum Kind {
    Special(Backing),
    /// Private memory without a file behind it.
    Private(Backing),
    /// A private mapping of a file that will not be there: all of it goes into the snapshot.
    PrivateCopy,
    PrivateFile(Backing),
    SharedFile(Backing),
    SharedMemory,
}

impl AddressSpace<'_, '_> {
    /// Reads all mappings, in address order, and saves their pages.
    pub(super) fn save(&mut self, vmas: &[Vma]) -> Result<Vec<Mapping>, CheckpointError> {
        let mut mappings = Vec::with_capacity(vmas.len());
        for vma in vmas.iter().filter(|vma| is_its_own(vma)) {
            let parent = self.pool_of(vma);
            for (part, is_guard) in self.split_at_guards(vma, parent.is_some())? {
                if is_guard {
                    mappings.push(guard(&part));
                } else if let Some((pool, image)) = parent {
                    mappings.extend(self.delta(&part, pool, image)?);
                } else {
                    let kind = self.kind(&part)?;
                    mappings.push(self.mapping(&part, kind)?);
                }
            }
        }
        Ok(delta::merged(mappings))
    }

    fn mapping(&mut self, vma: &Vma, kind: Kind) -> Result<Mapping, CheckpointError> {
        let flags = match kind {
            // The kernel's own attributes, which nobody can set.
            Kind::Special(_) => MappingFlags::default(),
            _ => mapping_flags(vma),
        };
        // What a program keeps there must differ in each instance.
        let comes_back_zeroed = flags.wipe_on_fork || flags.droppable;
        let (backing, saved) = match kind {
            Kind::Special(backing) | Kind::SharedFile(backing) => (backing, Vec::new()),
            Kind::Private(backing) if comes_back_zeroed => (backing, Vec::new()),
            Kind::Private(backing) => {
                let ranges = self.page_map.private_pages(&vma.range)?;
                let divided = match backing {
                    Backing::Anonymous => self.divided(&ranges, |_| Behind::Zeros)?,
                    // The main stack is copied into instances from the snapshot's own pool.
                    _ => Divided {
                        own: vec![ranges],
                        shared: Vec::new(),
                    },
                };
                let mut saved = divided.shared;
                // One after the other: small holes inside of a group are saved too, and none may be where shared pages are.
                for group in &divided.own {
                    saved.extend(self.pages.save_nonzero(self.memory, group)?);
                }
                saved.sort_unstable_by_key(|run| run.address);
                (backing, saved)
            }
            Kind::PrivateCopy => {
                let readable = vma.range.start..vma.range.start + self.file_bytes(vma)?;
                (
                    Backing::Anonymous,
                    self.pages.save_nonzero(self.memory, &[readable])?,
                )
            }
            Kind::PrivateFile(backing) => {
                let ranges = self.file_page_ranges(vma)?;
                (backing, self.pages.save_all(self.memory, &ranges)?)
            }
            Kind::SharedMemory => {
                let range = vma.offset..vma.offset + (vma.range.end - vma.range.start);
                let link = format!("/proc/{}/{}", self.pid, vma.map_file());
                let part = self.shared.save(self.pages, &link, range)?;
                let to_address = |run: PageRun| PageRun {
                    address: run.address - vma.offset + vma.range.start,
                    ..run
                };
                (
                    Backing::SharedMemory {
                        object: part.object,
                        size: part.size,
                        offset: vma.offset,
                    },
                    part.runs.into_iter().map(to_address).collect(),
                )
            }
        };
        Ok(Mapping {
            range: vma.range.clone(),
            prot: protection(vma),
            backing,
            flags,
            pkey: vma.pkey,
            name: vma.given_name().to_vec(),
            saved,
        })
    }

    fn kind(&mut self, vma: &Vma) -> Result<Kind, CheckpointError> {
        let obstacle =
            |reason: String| Err(Obstacle::new(Subject::Mapping(vma.range.clone()), reason).into());
        let path = String::from_utf8_lossy(&vma.path).into_owned();
        match vma.path.as_slice() {
            b"[vdso]" => return Ok(Kind::Special(Backing::Vdso)),
            b"[vvar]" => return Ok(Kind::Special(Backing::Vvar { index: 0 })),
            b"[vvar_vclock]" => return Ok(Kind::Special(Backing::Vvar { index: 1 })),
            _ => {}
        }
        for (code, what) in [
            ("ht", "huge pages"),
            ("um", "userfaultfd"),
            ("uw", "userfaultfd"),
            ("ss", "shadow stack"),
            ("sl", "sealed mapping"),
        ] {
            if vma.has(code) {
                return obstacle(what.to_owned());
            }
        }
        let kernel_object = [
            "/SYSV",
            "/[aio]",
            "anon_inode:",
            "/anon_hugepage",
            "/secretmem",
            "/dmabuf:",
        ];
        if vma.has("io")
            || vma.has("pf")
            || kernel_object.iter().any(|prefix| path.starts_with(prefix))
        {
            return obstacle(match path.as_str() {
                "" => "device memory".to_owned(),
                path if path.starts_with("/SYSV") => format!("System V shared memory {path}"),
                path if path.starts_with("/[aio]") => "asynchronous I/O context".to_owned(),
                path => path.strip_prefix("anon_inode:").unwrap_or(path).to_owned(),
            });
        }
        if vma.inode == 0 {
            return if vma.path == b"[uprobes]" {
                obstacle("uprobes".to_owned())
            } else {
                Ok(Kind::Private(if vma.has("gd") {
                    Backing::Stack
                } else {
                    Backing::Anonymous
                }))
            };
        }
        if vma.path == b"/dev/zero" && !vma.shared {
            return Ok(Kind::Private(Backing::Anonymous));
        }
        if vma.shared {
            // Anonymous shared memory, memfds, and files of a tmpfs without a name: nobody else can reach them.
            if vma.deleted {
                return Ok(Kind::SharedMemory);
            }
            if vma.write {
                return obstacle(format!("shared writable file {path}"));
            }
        }
        let link = format!("/proc/{}/{}", self.pid, vma.map_file());
        let file = if vma.deleted {
            None
        } else {
            self.known_file(vma, &link)
                .or_else(|| self.files.identify(&vma.path, &link))
        };
        match file {
            Some(file) if vma.shared => Ok(Kind::SharedFile(Backing::SharedFile {
                file,
                offset: vma.offset,
            })),
            Some(file) => Ok(Kind::PrivateFile(Backing::PrivateFile {
                file,
                offset: vma.offset,
            })),
            None if vma.shared => obstacle(format!(
                "shared mapping of {path}, which the host does not have"
            )),
            None if std::fs::metadata(&link).is_ok_and(|metadata| metadata.is_file()) => {
                Ok(Kind::PrivateCopy)
            }
            None => obstacle(format!("device {path}")),
        }
    }

    /// How many bytes of a file's mapping lie before the end of the file, in whole pages. Behind it, access ends in `SIGBUS`.
    fn file_bytes(&self, vma: &Vma) -> Result<u64, CheckpointError> {
        let link = format!("/proc/{}/{}", self.pid, vma.map_file());
        let metadata = std::fs::metadata(&link)
            .map_err(|source| CheckpointError::Read { path: link, source })?;
        let rest = metadata
            .len()
            .next_multiple_of(PAGE)
            .saturating_sub(vma.offset);
        Ok(rest.min(vma.range.end - vma.range.start))
    }

    /// Which pages of a private mapping of a file to save: those written, and what lies closely between.
    fn file_page_ranges(&self, vma: &Vma) -> Result<Vec<Range<u64>>, CheckpointError> {
        let written = self.page_map.private_pages(&vma.range)?;
        let Some(last) = written.last() else {
            return Ok(Vec::new());
        };
        let readable_end = vma.range.start + self.file_bytes(vma)?;
        if last.end > readable_end {
            // Truncated after it was written to: only what is there.
            return Ok(written);
        }
        if vma.pages() <= SMALL_FILE_PAGES {
            let whole = vma.range.start..readable_end;
            return Ok(vec![whole]);
        }
        Ok(self.pages.join_close(written))
    }

    /// Cuts private anonymous memory, or what is that once more from a pool, at its guard pages:
    /// (part, is it guard pages?). Elsewhere they are an obstacle.
    fn split_at_guards(
        &self,
        vma: &Vma,
        is_of_pool: bool,
    ) -> Result<Vec<(Vma, bool)>, CheckpointError> {
        let guards = if vma.path.starts_with(b"[v") {
            Vec::new()
        } else {
            self.page_map.guard_pages(&vma.range)?
        };
        let is_plain = is_of_pool || vma.inode == 0 && !vma.shared && !vma.has("gd");
        if let (Some(guard), false) = (guards.first(), is_plain) {
            let what = "guard pages in memory that is a stack, shared, or of a file";
            return Err(Obstacle::new(Subject::Mapping(guard.clone()), what).into());
        }
        let mut parts = Vec::new();
        let mut start = vma.range.start;
        for guard in guards {
            parts.push((vma.part(start..guard.start), false));
            start = guard.end;
            parts.push((vma.part(guard), true));
        }
        parts.push((vma.part(start..vma.range.end), false));
        parts.retain(|(part, _)| !part.range.is_empty());
        Ok(parts)
    }
}

/// Does a mapping belong to the function? The program of the restorer, which stays where it ran, does not.
fn is_its_own(vma: &Vma) -> bool {
    vma.path != b"[vsyscall]" && !(vma.deleted && vma.path == PROGRAM_PATH.as_bytes())
}

/// Guard pages are an attribute of page tables, not of mappings: a mapping of its own in the snapshot, one with its
/// neighbours once it is restored.
fn guard(vma: &Vma) -> Mapping {
    Mapping {
        range: vma.range.clone(),
        prot: protection(vma),
        backing: Backing::Anonymous,
        flags: MappingFlags {
            guard: true,
            ..mapping_flags(vma)
        },
        pkey: vma.pkey,
        name: vma.given_name().to_vec(),
        saved: Vec::new(),
    }
}

pub(super) fn protection(vma: &Vma) -> u32 {
    let bit = |set: bool, bit: i32| if set { bit as u32 } else { 0 };
    bit(vma.read, libc::PROT_READ)
        | bit(vma.write, libc::PROT_WRITE)
        | bit(vma.execute, libc::PROT_EXEC)
}

pub(super) fn mapping_flags(vma: &Vma) -> MappingFlags {
    MappingFlags {
        no_reserve: vma.has("nr"),
        dont_fork: vma.has("dc"),
        dont_dump: vma.has("dd"),
        wipe_on_fork: vma.has("wf"),
        huge_page: vma.has("hg"),
        no_huge_page: vma.has("nh"),
        mergeable: vma.has("mg"),
        locked: vma.has("lo"),
        random_read: vma.has("rr"),
        sequential_read: vma.has("sr"),
        droppable: vma.has("dp"),
        guard: false,
    }
}
