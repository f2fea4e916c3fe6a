//! What a session leaves behind for the prefix cache as it goes.

use compute::STATE_BLOCK;

use crate::prefix_cache::key::Key;

/// Blocks from one recurrent state that is kept of a long prompt to the next: 2,048 tokens, as much as a
/// pass reads. A state of a large model takes as much as the keys and values of some thousand tokens.
const KEPT_BLOCKS: usize = 2048 / STATE_BLOCK;

/// The keys of a session's blocks, and at which ends of blocks its recurrent states are kept.
#[derive(Debug, Default)]
pub(crate) struct Trail {
    /// Keys of the whole blocks.
    pub(crate) keys: Vec<Key>,
    /// Where another sequence went on differently: a third may do so, too.
    branch: Option<usize>,
    /// The last snapshot, if it is to be replaced by the next.
    pub(crate) passing: Option<Key>,
}

impl Trail {
    /// Of a session that holds blocks with these keys.
    pub(crate) fn new(keys: Vec<Key>, branch: Option<usize>) -> Self {
        Self { keys, branch, passing: None }
    }

    /// The ends of blocks, in blocks, at which a session at `position` is to keep snapshots as it takes
    /// in `n_tokens`, in order: those to be kept in any case, and the last. Of tokens that end a prompt
    /// it is the last before the last token, because a sequence that is taken up needs a token to
    /// compute. A single token has no other.
    pub(crate) fn marks(
        &self,
        position: usize,
        n_tokens: usize,
        ends_prompt: bool,
    ) -> impl Iterator<Item = usize> {
        let end = position + n_tokens;
        let left_to_compute = usize::from(ends_prompt && n_tokens > 1);
        let last = (end - left_to_compute) / STATE_BLOCK;
        let blocks = position / STATE_BLOCK + 1..=end / STATE_BLOCK;
        blocks.filter(move |&block| block == last || self.is_kept(block))
    }

    /// Whether a snapshot is kept in any case.
    pub(crate) fn is_kept(&self, block: usize) -> bool {
        block.is_multiple_of(KEPT_BLOCKS) || self.branch == Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_few_and_at_the_last_block_before_the_end() {
        let trail = Trail::new(Vec::new(), Some(3));
        let marks = |position, n_tokens| trail.marks(position, n_tokens, true).collect::<Vec<_>>();
        assert!(marks(0, 63).is_empty());
        assert!(marks(0, 64).is_empty(), "nothing would be left to compute");
        assert_eq!(marks(0, 65), [1]);
        assert_eq!(marks(0, 500), [3, 7], "at the branch and at the end");
        assert_eq!(marks(192, 308), [7], "the branch is passed");
        assert_eq!(marks(63, 1), [1], "a single token ends a block");
        assert!(marks(64, 1).is_empty());
        assert_eq!(marks(1000, 3500), [32, 64, 70]);
        assert_eq!(marks(0, 2048), [3, 31, 32], "a long prompt goes on from there");

        let piece = |position, n_tokens| trail.marks(position, n_tokens, false).collect::<Vec<_>>();
        assert_eq!(piece(0, 64), [1], "the next piece begins behind it");
        assert_eq!(piece(64, 64), [2]);
        assert_eq!(piece(0, 512), [3, 8]);
        assert_eq!(piece(0, 2048), [3, 32]);
        assert!(piece(0, 63).is_empty());
    }
}
