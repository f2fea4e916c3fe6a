//! Sessions that begin where others were, and what sessions leave behind for that.

use compute::STATE_BLOCK;

use crate::engine::{Engine, Part};
use crate::error::Error;
use crate::prefix_cache::Where;
use crate::prefix_cache::stats::PrefixCacheStats;
use crate::prefix_cache::trail::Trail;
use crate::session::Session;

impl Engine {
    /// Starts a session that already holds the longest beginning of `tokens` that the prefix cache knows,
    /// and tells how many tokens that is: never all, because the last must be computed to go on.
    pub fn session_for(&mut self, tokens: &[u32]) -> Result<(Session, usize), Error> {
        let mut session = self.session()?;
        let (context, runner) = (session.context, &self.runner);
        let Some(cache) = &mut self.prefix_cache else { return Ok((session, 0)) };
        let n_usable = tokens.len().saturating_sub(1).min(context);
        let mut keys = Vec::new();
        cache.extend_chain(&tokens[..n_usable], &mut keys);
        let fresh = || runner.new_state(context);
        let found = cache.restore(&**runner, &mut session.state, &fresh, &keys, tokens.len());
        let n_restored = found.n_blocks * STATE_BLOCK;
        keys.truncate(found.n_blocks);
        session.trail = Trail::new(keys, found.branch);
        session.tokens.extend_from_slice(&tokens[..n_restored]);
        Ok((session, n_restored))
    }

    /// Puts what a session holds into the prefix cache, in memory and on the drive, for
    /// [`Engine::session_for`]. Without a prefix cache, and of a session that failed, nothing is kept.
    pub fn remember(&mut self, session: &Session) {
        self.keep(session, Where::MemoryAndDrive);
    }

    /// What the prefix cache holds and was worth, if there is one.
    pub fn prefix_cache_stats(&self) -> Option<PrefixCacheStats> {
        self.prefix_cache.as_ref().map(|cache| cache.stats())
    }

    /// The same in memory alone: for those who begin alike while the session goes on.
    pub(crate) fn remember_in_memory(&mut self, session: &Session) {
        self.keep(session, Where::Memory);
    }

    fn keep(&mut self, session: &Session, place: Where) {
        if let Some(cache) = &mut self.prefix_cache
            && !session.broken
        {
            cache.remember(&*self.runner, &session.state, &session.trail.keys, place);
        }
    }

    /// Has the sessions of a pass make snapshots on the way, as many as memory may hold.
    pub(crate) fn mark_snapshots(&mut self, parts: &mut [Part<'_>]) {
        let Some(cache) = self.prefix_cache.as_mut().filter(|cache| cache.has_recurrent()) else {
            return;
        };
        let marks = &mut self.marks;
        marks.clear();
        for (index, part) in parts.iter_mut().enumerate() {
            let Session { tokens, trail, .. } = &mut *part.session;
            let n_before = marks.len();
            // Logits are wanted of the last token of a prompt, and of no piece before.
            let ends_prompt =
                part.tokens.len().checked_sub(1).is_some_and(|last| (part.wants_logits)(last));
            let blocks = trail.marks(tokens.len(), part.tokens.len(), ends_prompt);
            marks.extend(blocks.map(|block| (index, block)));
            // The next snapshot takes the room of the one that it replaces.
            if marks.len() > n_before
                && let Some(old) = trail.passing.take()
            {
                cache.remove_passing(old);
            }
        }
        // The ends of prompts are worth most; what is kept on the way goes first.
        while !marks.is_empty() && !cache.make_room_for_snapshots(marks.len()) {
            let is_on_the_way = |&(index, block): &(usize, usize)| {
                let follows = marks.iter().any(|&(part, later)| part == index && later > block);
                follows && parts[index].session.trail.is_kept(block)
            };
            let least = marks.iter().position(is_on_the_way).unwrap_or(marks.len() - 1);
            marks.remove(least);
        }
        for &(index, block) in &*marks {
            self.runner.mark_snapshot(&mut parts[index].session.state, block * STATE_BLOCK);
        }
    }

    /// Puts the snapshots that were made in a pass into the cache.
    pub(crate) fn take_snapshots(&mut self, parts: &mut [Part<'_>]) {
        let Some(cache) = &mut self.prefix_cache else { return };
        for part in parts.iter_mut() {
            let Session { tokens, trail, .. } = &mut *part.session;
            cache.extend_chain(tokens, &mut trail.keys);
        }
        for (index, block) in self.marks.drain(..) {
            let Session { state, trail, broken, .. } = &mut *parts[index].session;
            let snapshot = self.runner.take_snapshot(state, block * STATE_BLOCK);
            let Some(snapshot) = snapshot.filter(|_| !*broken) else { continue };
            let key = trail.keys[block - 1];
            let is_passing = !trail.is_kept(block);
            if cache.add_snapshot(key, snapshot, is_passing) && is_passing {
                trail.passing = Some(key);
            }
        }
    }
}
