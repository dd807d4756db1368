//! What kind of kernel a file holds, and the kernel inside of a compressed one.
//!
//! A `bzImage` unpacks itself, which the guest would do on each boot. Unpacked here, once, it is a `vmlinux` that only needs
//! to be loaded. Its kernel then stays at the address it was linked for (the unpacker is what moves it elsewhere); all
//! machines that come from one snapshot would share that address anyway.

use std::fs::File;
use std::io::{self, Read};

/// The bytes of a file that tell what it is.
const BEGINNING: usize = 0x264;
/// No kernel is larger, unpacked. Debian's has 55 MiB.
const MOST_UNPACKED: usize = 256 << 20;

/// How a kernel is loaded and entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum KernelFormat {
    /// An ELF file whose entry is Linux's 64-bit entry.
    Vmlinux,
    /// A kernel behind its real-mode setup code, that unpacks itself.
    BzImage,
}

/// A file holds no kernel that can be booted.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is neither.
    #[error("this is neither a vmlinux nor a bzImage for x86-64")]
    Unknown,
    /// The compressed kernel is not inside of the file.
    #[error("the compressed kernel does not lie inside of this bzImage")]
    Payload,
    /// It cannot be unpacked.
    #[error("the compressed kernel cannot be unpacked")]
    Unpack(#[source] io::Error),
    /// What came out is no kernel.
    #[error("the compressed kernel holds no vmlinux")]
    Unpacked,
}

/// The beginning of a kernel file, as far as it is there.
pub fn beginning(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(BEGINNING as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl KernelFormat {
    /// By a file's first bytes.
    ///
    /// # Errors
    /// If they are of something else.
    pub fn of(bytes: &[u8]) -> Result<Self, ImageError> {
        if is_vmlinux(bytes) {
            Ok(Self::Vmlinux)
        } else if Header::parse(bytes).is_some() {
            Ok(Self::BzImage)
        } else {
            Err(ImageError::Unknown)
        }
    }
}

/// The kernel as it is best booted: unpacked, if it is packed in a way that is known.
///
/// # Errors
/// If it is no kernel or is damaged.
pub fn unpack(image: Vec<u8>) -> Result<(KernelFormat, Vec<u8>), ImageError> {
    let format = KernelFormat::of(&image)?;
    let Some(header) = Header::parse(&image) else {
        return Ok((format, image));
    };
    let payload = header.payload(&image).ok_or(ImageError::Payload)?;
    // As all distributions of today pack it; others unpack themselves in the guest.
    if !payload.starts_with(&zstd::zstd_safe::MAGICNUMBER.to_le_bytes()) {
        return Ok((format, image));
    }
    let mut vmlinux = Vec::new();
    zstd::Decoder::new(payload)
        .map_err(ImageError::Unpack)?
        .single_frame()
        .take(MOST_UNPACKED as u64)
        .read_to_end(&mut vmlinux)
        .map_err(ImageError::Unpack)?;
    if !is_vmlinux(&vmlinux) {
        return Err(ImageError::Unpacked);
    }
    Ok((KernelFormat::Vmlinux, vmlinux))
}

/// An ELF file of 64 bits, little-endian, executable, for x86-64.
fn is_vmlinux(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x7fELF\x02\x01") && bytes.get(16..20) == Some(&[2, 0, 62, 0])
}

/// What the setup header of a bzImage says, which has been seen to be one with a 64-bit entry.
/// (Linux: Documentation/arch/x86/boot.rst.)
struct Header {
    setup_sectors: u8,
    payload_offset: u32,
    payload_length: u32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let long = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let magic = bytes.get(0x202..0x206)?;
        // 2.12 (Linux 3.8) has `xloadflags`, whose bit 0 promises a 64-bit entry.
        if magic != b"HdrS" || word(0x206)? < 0x020c || word(0x236)? & 1 == 0 {
            return None;
        }
        Some(Self {
            // 0 stands for 4, for reasons older than bzImage.
            setup_sectors: match *bytes.get(0x1f1)? {
                0 => 4,
                sectors => sectors,
            },
            payload_offset: long(0x248)?,
            payload_length: long(0x24c)?,
        })
    }

    fn payload<'a>(&self, image: &'a [u8]) -> Option<&'a [u8]> {
        let begin = (usize::from(self.setup_sectors) + 1) * 512 + self.payload_offset as usize;
        image.get(begin..begin + self.payload_length as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn vmlinux() -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend([2, 0, 62, 0]);
        bytes.extend(std::iter::repeat_n(b"kernel".as_slice(), 1000).flatten());
        bytes
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 0x600];
        bytes[0x1f1] = 1;
        bytes[0x202..0x206].copy_from_slice(b"HdrS");
        bytes[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
        bytes[0x236] = 0x7f;
        bytes[0x248..0x24c].copy_from_slice(&0x200_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).expect("it is small");
        bytes[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn a_packed_kernel_is_unpacked() {
        let mut payload = zstd::encode_all(vmlinux().as_slice(), 3).expect("it packs");
        // Linux's build appends the size.
        payload.extend([1, 2, 3, 4]);
        let (format, image) = unpack(bzimage(&payload)).expect("it is well formed");
        assert_eq!((format, image), (KernelFormat::Vmlinux, vmlinux()));
    }

    #[test]
    fn a_kernel_that_is_not_known_to_be_packed_stays_as_it_is() {
        let unknown = bzimage(b"some other packing");
        let (format, image) = unpack(unknown.clone()).expect("it is well formed");
        assert_eq!((format, image), (KernelFormat::BzImage, unknown));
        let (format, image) = unpack(vmlinux()).expect("it is well formed");
        assert_eq!((format, image), (KernelFormat::Vmlinux, vmlinux()));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert!(matches!(unpack(Vec::new()), Err(ImageError::Unknown)));
        let mut short = bzimage(b"payload");
        short.pop();
        assert!(matches!(unpack(short), Err(ImageError::Payload)));
        let wrong = zstd::encode_all(b"no kernel".as_slice(), 3).expect("it packs");
        assert!(matches!(unpack(bzimage(&wrong)), Err(ImageError::Unpacked)));
        let cut = zstd::encode_all(vmlinux().as_slice(), 3).expect("it packs");
        assert!(matches!(
            unpack(bzimage(&cut[..cut.len() / 2])),
            Err(ImageError::Unpack(_))
        ));
    }

    proptest! {
        #[test]
        fn no_header_leads_outside(sectors: u8, offset: u32, length: u32) {
            let mut image = bzimage(b"payload");
            image[0x1f1] = sectors;
            image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
            image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
            let end = (u64::from(if sectors == 0 { 4 } else { sectors }) + 1) * 512
                + u64::from(offset) + u64::from(length);
            let inside = end <= image.len() as u64;
            prop_assert_eq!(unpack(image).is_ok(), inside);
        }
    }
}
