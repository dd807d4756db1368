//! What a manifest can be about, and the one place that says which sections each has.

use std::fmt;

use super::container::{Builder, Container};
use super::error::ManifestError;
use super::layout::Section;
use super::records::PoolSection;
use super::{Binding, HostDigests, Manifest};
use crate::model::{MachineSnapshot, MemoryImage, ParentPool, ProcessSnapshot};
use crate::validate::{Invalid, validate, validate_image, validate_machine};

/// What kind of sandbox was written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum SnapshotKind {
    /// A process.
    Process = 1,
    /// A virtual machine.
    MicroVm = 2,
    /// The memory of a virtual machine of another VMM.
    Memory = 3,
}

impl SnapshotKind {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        [Self::Process, Self::MicroVm, Self::Memory]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

impl fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Process => "a process",
            Self::MicroVm => "a virtual machine",
            Self::Memory => "a memory image",
        })
    }
}

/// What a manifest is about: a [`ProcessSnapshot`], a [`MachineSnapshot`], a [`MemoryImage`], or [`AnySnapshot`] of them.
pub trait Subject: Sized {
    /// Checks everything that can be known from the snapshot alone.
    ///
    /// # Errors
    /// The first thing that makes no sense.
    fn check(&self) -> Result<(), Invalid>;

    /// Length of its own pool in pages.
    fn pool_pages(&self) -> u64;

    /// The bytes of its manifest. The same snapshot always gives the same bytes. The caller has [checked](Self::check) it:
    /// [`decode`](Self::decode) refuses it otherwise.
    fn encode(&self, binding: Option<&Binding>) -> Vec<u8>;

    /// Reads a manifest.
    ///
    /// # Errors
    /// Anything that is damaged, unknown or inconsistent, or of another kind; the error names the section and the reason.
    fn decode(bytes: &[u8]) -> Result<Manifest<Self>, ManifestError>;
}

impl Subject for ProcessSnapshot {
    fn check(&self) -> Result<(), Invalid> {
        validate(self)
    }

    fn pool_pages(&self) -> u64 {
        self.pool_pages
    }

    fn encode(&self, binding: Option<&Binding>) -> Vec<u8> {
        let mut builder = Builder::new(SnapshotKind::Process, HostDigests::of(&self.host));
        builder.section(Section::Host, &self.host);
        builder.section(Section::Process, &self.process);
        builder.section(Section::Threads, &self.threads);
        builder.section(Section::Mappings, &self.mappings);
        builder.section(Section::Files, &self.files);
        builder.section(Section::Descriptions, &self.descriptions);
        builder.section(Section::Descriptors, &self.descriptors);
        builder.section(Section::Tmp, &self.tmp);
        put_pools(&mut builder, self.pool_pages, binding, &self.parents);
        builder.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Manifest<Self>, ManifestError> {
        let container = open(bytes, SnapshotKind::Process)?;
        let (pool, parents) = take_pools(&container)?;
        let snapshot = Self {
            host: container.read(Section::Host)?,
            process: container.read(Section::Process)?,
            threads: container.read(Section::Threads)?,
            mappings: container.read(Section::Mappings)?,
            files: container.read(Section::Files)?,
            descriptions: container.read(Section::Descriptions)?,
            descriptors: container.read(Section::Descriptors)?,
            tmp: container.read(Section::Tmp)?,
            pool_pages: pool.pages,
            parents,
        };
        finish(&container, HostDigests::of(&snapshot.host), snapshot, pool)
    }
}

impl Subject for MachineSnapshot {
    fn check(&self) -> Result<(), Invalid> {
        validate_machine(self)
    }

    fn pool_pages(&self) -> u64 {
        self.pool_pages
    }

    fn encode(&self, binding: Option<&Binding>) -> Vec<u8> {
        let digests = HostDigests::of_machine(&self.host);
        let mut builder = Builder::new(SnapshotKind::MicroVm, digests);
        builder.section(Section::MachineHost, &self.host);
        builder.section(Section::Hardware, &self.hardware);
        builder.section(Section::Memory, &self.memory);
        builder.section(Section::Vcpus, &self.vcpus);
        builder.section(Section::Chips, &self.chips);
        builder.section(Section::Devices, &self.devices);
        put_pools(&mut builder, self.pool_pages, binding, &self.parents);
        builder.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Manifest<Self>, ManifestError> {
        let container = open(bytes, SnapshotKind::MicroVm)?;
        let (pool, parents) = take_pools(&container)?;
        let snapshot = Self {
            host: container.read(Section::MachineHost)?,
            hardware: container.read(Section::Hardware)?,
            memory: container.read(Section::Memory)?,
            vcpus: container.read(Section::Vcpus)?,
            chips: container.read(Section::Chips)?,
            devices: container.read(Section::Devices)?,
            pool_pages: pool.pages,
            parents,
        };
        let digests = HostDigests::of_machine(&snapshot.host);
        finish(&container, digests, snapshot, pool)
    }
}

impl Subject for MemoryImage {
    fn check(&self) -> Result<(), Invalid> {
        validate_image(self)
    }

    fn pool_pages(&self) -> u64 {
        self.pool_pages
    }

    fn encode(&self, binding: Option<&Binding>) -> Vec<u8> {
        let mut builder = Builder::new(SnapshotKind::Memory, HostDigests::none());
        builder.section(Section::Image, &self.pages);
        builder.section(Section::Memory, &self.memory);
        put_pools(&mut builder, self.pool_pages, binding, &Vec::new());
        builder.finish()
    }

    fn decode(bytes: &[u8]) -> Result<Manifest<Self>, ManifestError> {
        let container = open(bytes, SnapshotKind::Memory)?;
        let pool: PoolSection = container.read(Section::Pool)?;
        let image = Self {
            pages: container.read(Section::Image)?,
            memory: container.read(Section::Memory)?,
            pool_pages: pool.pages,
        };
        finish(&container, HostDigests::none(), image, pool)
    }
}

/// Of any kind: for what deals with pages alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnySnapshot {
    /// A process.
    Process(Box<ProcessSnapshot>),
    /// A virtual machine.
    MicroVm(Box<MachineSnapshot>),
    /// The memory of a virtual machine of another VMM.
    Memory(Box<MemoryImage>),
}

impl Subject for AnySnapshot {
    fn check(&self) -> Result<(), Invalid> {
        match self {
            Self::Process(snapshot) => snapshot.check(),
            Self::MicroVm(snapshot) => snapshot.check(),
            Self::Memory(image) => image.check(),
        }
    }

    fn pool_pages(&self) -> u64 {
        match self {
            Self::Process(snapshot) => snapshot.pool_pages,
            Self::MicroVm(snapshot) => snapshot.pool_pages,
            Self::Memory(image) => image.pool_pages,
        }
    }

    fn encode(&self, binding: Option<&Binding>) -> Vec<u8> {
        match self {
            Self::Process(snapshot) => snapshot.encode(binding),
            Self::MicroVm(snapshot) => snapshot.encode(binding),
            Self::Memory(image) => image.encode(binding),
        }
    }

    fn decode(bytes: &[u8]) -> Result<Manifest<Self>, ManifestError> {
        Ok(match Container::open(bytes)?.kind() {
            SnapshotKind::Process => {
                ProcessSnapshot::decode(bytes)?.map(|snapshot| Self::Process(Box::new(snapshot)))
            }
            SnapshotKind::MicroVm => {
                MachineSnapshot::decode(bytes)?.map(|snapshot| Self::MicroVm(Box::new(snapshot)))
            }
            SnapshotKind::Memory => {
                MemoryImage::decode(bytes)?.map(|image| Self::Memory(Box::new(image)))
            }
        })
    }
}

fn open(bytes: &[u8], expected: SnapshotKind) -> Result<Container<'_>, ManifestError> {
    let container = Container::open(bytes)?;
    match container.kind() {
        found if found == expected => Ok(container),
        found => Err(ManifestError::OtherKind { found, expected }),
    }
}

fn put_pools(
    builder: &mut Builder,
    pages: u64,
    binding: Option<&Binding>,
    parents: &Vec<ParentPool>,
) {
    let binding = binding.cloned();
    builder.section(Section::Pool, &PoolSection { pages, binding });
    if !parents.is_empty() {
        builder.section(Section::Parents, parents);
    }
}

fn take_pools(container: &Container<'_>) -> Result<(PoolSection, Vec<ParentPool>), ManifestError> {
    let parents = match container.read_optional(Section::Parents)? {
        Some(parents) if Vec::is_empty(&parents) => return Err(ManifestError::NoParents),
        parents => parents.unwrap_or_default(),
    };
    Ok((container.read(Section::Pool)?, parents))
}

fn finish<S: Subject>(
    container: &Container<'_>,
    digests: HostDigests,
    snapshot: S,
    pool: PoolSection,
) -> Result<Manifest<S>, ManifestError> {
    if digests != container.host_digests() {
        return Err(ManifestError::HostDigest);
    }
    snapshot.check()?;
    let binding = pool.binding;
    Ok(Manifest { snapshot, binding })
}
