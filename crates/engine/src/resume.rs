//! Sessions that begin where others were, and what sessions leave behind for that.

use compute::STATE_BLOCK;

use crate::engine::{Engine, Part};
use crate::error::Error;
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
        self.keep(session, true);
    }

    /// What the prefix cache holds and was worth, if there is one.
    pub fn prefix_cache_stats(&self) -> Option<PrefixCacheStats> {
        self.prefix_cache.as_ref().map(|cache| cache.stats())
    }

    /// Puts what a session holds into the prefix cache, in memory or also on the drive.
    pub(crate) fn keep(&mut self, session: &Session, on_disk: bool) {
        if let Some(cache) = &mut self.prefix_cache
            && !session.broken
        {
            cache.remember(&*self.runner, &session.state, &session.trail.keys, on_disk);
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
            let blocks = trail.marks(tokens.len(), part.tokens.len());
            marks.extend(blocks.map(|block| (index, block)));
            // The next snapshot takes the room of the one that it replaces.
            if marks.len() > n_before
                && let Some(old) = trail.passing.take()
            {
                cache.remove_passing(old);
            }
        }
        while !marks.is_empty() && !cache.make_room_for_snapshots(marks.len()) {
            marks.pop();
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
