//! Where the mappings of a process differ from those that it was restored with.

use std::ops::Range;

use crate::checkpoint::mappings::Vma;

/// Addresses that are mapped in one of the two and not in the other, or otherwise. Both are in address order. Where
/// mappings begin and end does not matter: the kernel joins and splits them as it likes.
pub(super) fn differences(then: &[Vma], now: &[Vma]) -> Vec<Range<u64>> {
    let mut cuts: Vec<u64> = (then.iter().chain(now))
        .flat_map(|vma| [vma.range.start, vma.range.end])
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut found: Vec<Range<u64>> = Vec::new();
    for pair in cuts.windows(2) {
        let (start, end) = (pair[0], pair[1]);
        let same = match (at(then, start), at(now, start)) {
            (None, None) => true,
            (Some(then), Some(now)) => is_same(then, now, start),
            _ => false,
        };
        if same {
            continue;
        }
        match found.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => found.push(start..end),
        }
    }
    found
}

fn at(vmas: &[Vma], address: u64) -> Option<&Vma> {
    let after = vmas.partition_point(|vma| vma.range.start <= address);
    let vma = vmas.get(after.checked_sub(1)?)?;
    (address < vma.range.end).then_some(vma)
}

fn is_same(then: &Vma, now: &Vma, address: u64) -> bool {
    let place = |vma: &Vma| match vma.inode {
        0 => 0,
        _ => vma.offset + (address - vma.range.start),
    };
    // `[vdso]` and alike have no other mark; the names of the heap and the stack only say where they lie.
    let special = |vma: &Vma| vma.path.starts_with(b"[v");
    (then.read, then.write, then.execute, then.shared)
        == (now.read, now.write, now.execute, now.shared)
        && then.inode == now.inode
        && then.device == now.device
        && place(then) == place(now)
        && (!special(then) && !special(now) || then.path == now.path)
        && then.given_name() == now.given_name()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed step of a test may panic")]
mod tests {
    use super::*;
    use crate::checkpoint::mappings::parse;

    fn vmas(text: &str) -> Vec<Vma> {
        parse(text.as_bytes()).unwrap()
    }

    const THEN: &str = "1000-5000 rw-p 00000000 00:01 7 /memfd:pool (deleted)\n\
        8000-9000 rw-p 00000000 00:00 0 [heap]\n\
        a000-b000 r-xp 00000000 00:00 0 [vdso]\n";

    #[test]
    fn a_split_is_no_difference() {
        let split = "1000-2000 rw-p 00000000 00:01 7 /memfd:pool (deleted)\n\
            2000-5000 rw-p 00001000 00:01 7 /memfd:pool (deleted)\n\
            8000-9000 rw-p 00000000 00:00 0 [heap]\n\
            a000-b000 r-xp 00000000 00:00 0 [vdso]\n";
        assert_eq!(differences(&vmas(THEN), &vmas(split)), []);
    }

    #[test]
    fn each_kind_of_difference_is_found() {
        let other = "1000-2000 r--p 00000000 00:01 7 /memfd:pool (deleted)\n\
            2000-3000 rw-p 00000000 00:00 0 \n\
            3000-4000 rw-p 00000000 00:01 7 /memfd:pool (deleted)\n\
            8000-a000 rw-p 00000000 00:00 0 [heap]\n\
            c000-d000 rw-p 00000000 00:00 0 \n";
        // Protection, backing, offset, a hole, growth, the vDSO that is gone, and what is new.
        assert_eq!(
            differences(&vmas(THEN), &vmas(other)),
            [0x1000..0x5000, 0x9000..0xb000, 0xc000..0xd000]
        );
    }
}
