//! What a kernel starts from: an archive of files, in the form that Linux unpacks into its first root ("newc" cpio).
//!
//! Both machines that this repository boots begin so: the microVM, with `rouse-guest` in it, and the test bed.

pub mod modules;
pub mod tool;

/// A cpio archive in the form that the kernel reads ("newc"). It is not compressed.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory, given without a leading slash. Its parents must have been added.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    /// Adds a file with the permission bits of `mode`. Its directory must have been added.
    ///
    /// # Panics
    /// If it has 4 GiB or more: the form cannot hold it, nor the kernel its root.
    pub fn file(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entry(name, 0o100_000 | mode, contents);
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.entries += 1;
        let fields = [
            self.entries, // inode: different ones, else they are hard links
            mode,
            0, // owner
            0, // group
            1, // links
            0, // time
            u32::try_from(contents.len()).expect("no part of the initramfs has 4 GiB"),
            0,
            0, // device
            0,
            0, // device that a node stands for
            u32::try_from(name.len() + 1).expect("names are short"),
            0, // no checksum in this form
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// The archive's bytes.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_has_the_form_that_the_kernel_reads() {
        let mut archive = Archive::default();
        archive.file("a/odd", 0o755, b"12345");
        let bytes = archive.finish();
        let header = "070701\
                      00000001000081ed000000000000000000000001000000000000000500000000\
                      0000000000000000000000000000000600000000";
        let text = String::from_utf8(bytes).expect("these contents are text");
        assert_eq!(header.len(), 110);
        assert_eq!(&text[..110], header);
        // Name and contents begin at multiples of four, counted from the beginning.
        assert_eq!(&text[110..124], "a/odd\0\x312345\0\0\0");
        assert_eq!(&text[124..130], "070701");
        assert!(text.ends_with("TRAILER!!!\0\0\0\0"));
        assert_eq!(text.len() % 4, 0);
    }
}
