//! Which accesses of buffers have to wait for earlier ones.

use std::collections::HashMap;

use wgpu::BufferUses;

/// What the accesses since the last barrier were. A barrier makes all before it seen by all after it.
#[derive(Debug, Default)]
pub(super) struct Hazards {
    read: Vec<u64>,
    written: Vec<u64>,
}

/// Whether a use writes.
pub(super) fn writes(usage: BufferUses) -> bool {
    usage.intersects(BufferUses::STORAGE_READ_WRITE | BufferUses::COPY_DST)
}

impl Hazards {
    /// Counts accesses that happen together, and tells whether a barrier must come before them: one of them
    /// reads or writes what was written since the last, or writes what was read.
    pub(super) fn access(
        &mut self,
        accesses: impl Iterator<Item = (u64, BufferUses)> + Clone,
    ) -> bool {
        let is_late = accesses.clone().any(|(buffer, usage)| {
            self.written.contains(&buffer) || (writes(usage) && self.read.contains(&buffer))
        });
        if is_late {
            self.read.clear();
            self.written.clear();
        }
        for (buffer, usage) in accesses {
            let set = if writes(usage) { &mut self.written } else { &mut self.read };
            if !set.contains(&buffer) {
                set.push(buffer);
            }
        }
        is_late
    }
}

/// How buffers were used last, for an interface in which each is in a state (DX12). Between submissions
/// states are given up.
#[derive(Debug, Default)]
pub(super) struct States(HashMap<u64, BufferUses>);

impl States {
    #[cfg_attr(not(any(windows, test)), expect(dead_code, reason = "for DX12"))]
    /// Puts a buffer into a state, and gives the one before if a barrier must come between them.
    pub(super) fn enter(&mut self, buffer: u64, usage: BufferUses) -> Option<BufferUses> {
        let before = self.0.insert(buffer, usage)?;
        (before != usage || writes(usage)).then_some(before)
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: BufferUses = BufferUses::STORAGE_READ_ONLY;
    const WRITE: BufferUses = BufferUses::STORAGE_READ_WRITE;

    fn barriers(dispatches: &[&[(u64, BufferUses)]]) -> Vec<bool> {
        let mut hazards = Hazards::default();
        dispatches.iter().map(|accesses| hazards.access(accesses.iter().copied())).collect()
    }

    #[test]
    fn only_what_depends_waits() {
        // Two products of one input, what joins them, and one that reads what was there before.
        let [x, a, b, c, d] = [1, 2, 3, 4, 5];
        let chain: [&[_]; 4] = [
            &[(x, READ), (a, WRITE)],
            &[(x, READ), (b, WRITE)],
            &[(a, READ), (b, READ), (c, WRITE)],
            &[(x, READ), (d, WRITE)],
        ];
        assert_eq!(barriers(&chain), [false, false, true, false]);
    }

    #[test]
    fn writes_wait_for_reads_and_writes() {
        let [x, y] = [1, 2];
        assert_eq!(
            barriers(&[&[(x, READ), (y, WRITE)], &[(x, WRITE)]]),
            [false, true],
            "read before"
        );
        assert_eq!(barriers(&[&[(x, WRITE)], &[(x, WRITE)]]), [false, true], "written before");
        assert_eq!(barriers(&[&[(x, READ)], &[(x, READ)]]), [false, false], "reads share");
        let copied = [(x, BufferUses::COPY_DST)];
        assert_eq!(
            barriers(&[&copied, &[(x, READ)], &[(x, READ)]]),
            [false, true, false],
            "a copy"
        );
    }

    #[test]
    fn every_dependence_has_a_barrier_and_every_barrier_a_dependence() {
        let mut state = 1_u32;
        let mut below = |n: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % n
        };
        let usages = [READ, READ, WRITE, BufferUses::COPY_SRC, BufferUses::COPY_DST];
        let dispatches: Vec<Vec<_>> = (0..2000)
            .map(|_| {
                let n = 1 + below(4);
                (0..n).map(|_| (u64::from(below(12)), usages[below(5) as usize])).collect()
            })
            .collect();
        let slices: Vec<_> = dispatches.iter().map(Vec::as_slice).collect();
        let barriers = barriers(&slices);
        let depends = |a: &[(u64, BufferUses)], b: &[(u64, BufferUses)]| {
            let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
            pairs.into_iter().any(|(a, b)| a.0 == b.0 && (writes(a.1) || writes(b.1)))
        };
        let mut last = 0;
        for (index, is_barrier) in barriers.iter().enumerate() {
            let is_needed = (last..index).any(|before| depends(slices[before], slices[index]));
            assert_eq!(*is_barrier, is_needed, "before dispatch {index}, since {last}");
            if is_needed {
                last = index;
            }
        }
        assert!(last > 1900, "there were barriers to the end");
    }

    #[test]
    fn states_change_where_uses_differ() {
        let mut states = States::default();
        assert_eq!(states.enter(1, READ), None, "any state can be entered first");
        assert_eq!(states.enter(1, READ), None);
        assert_eq!(states.enter(1, WRITE), Some(READ));
        assert_eq!(states.enter(1, WRITE), Some(WRITE), "writes are ordered");
        states.clear();
        assert_eq!(states.enter(1, READ), None);
    }
}
