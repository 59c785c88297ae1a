//! Caches of layers with a window: which entries are forgotten, and what stays of a document.

use crate::attributes::{CACHE_GROWTH, entries_that_stay};
use crate::ggml::GgmlError;

use super::{Kept, LayerCache};

impl LayerCache {
    /// The same for a layer that sees no further than `window` tokens back.
    pub fn with_window(self, window: Option<usize>) -> Self {
        Self { window, ..self }
    }

    /// An empty one of the same kind, without a window.
    pub(in crate::session) fn another(&self) -> Self {
        Self::new(self.buft, self.width, self.types)
    }

    /// Whether another has entries of the same width in the same memory.
    pub(in crate::session) fn is_like(&self, other: &LayerCache) -> bool {
        self.buft == other.buft && self.width == other.width && self.types == other.types
    }

    /// Of so many entries those that stay.
    pub(in crate::session) fn that_stay(&self, n: usize) -> usize {
        entries_that_stay(self.window, n)
    }

    /// Entries that a layer with a window has room for at least, however many tokens are read; `None` without one.
    pub fn enough(&self) -> Option<usize> {
        self.window.map(|window| window + CACHE_GROWTH)
    }

    /// Forgets entries that no later token sees, if there are more of them than are worth the work.
    pub(in crate::session) fn forget(&mut self) {
        if self.enough().is_some_and(|enough| self.len >= enough) {
            let n = self.that_stay(self.len);
            self.move_to_front(self.len - n, n);
            self.count_forgotten(n);
        }
    }

    fn move_to_front(&self, first: usize, n: usize) {
        if let Some((arena, k, v)) = &self.arena {
            arena.shift_rows(*k, first, n);
            arena.shift_rows(*v, first, n);
        }
    }

    /// Of the entries the last `n` stay.
    fn count_forgotten(&mut self, n: usize) {
        let first = self.len - n;
        self.forgotten += first;
        self.len = n;
        if let Some(positions) = &mut self.positions {
            positions.drain(..first);
        }
        self.least = self.least.max(self.oldest_end());
    }

    /// The fewest tokens behind which all that the next one sees is there.
    fn oldest_end(&self) -> usize {
        if self.forgotten == 0 {
            return 0;
        }
        let oldest = self.positions.as_ref().and_then(|p| p.first().copied()).map_or(self.forgotten, |p| p as usize);
        oldest + self.window.unwrap_or(0).saturating_sub(1)
    }

    /// Copies the entries to the first rows of `shared`.
    pub(in crate::session) fn copy_to(&self, shared: &LayerCache) {
        self.copy_rows_to(0, self.len, shared, 0);
    }

    fn copy_rows_to(&self, from_first: usize, n: usize, other: &LayerCache, first: usize) {
        let (Some((from, k, v)), Some((to, to_k, to_v))) = (&self.arena, &other.arena) else { return };
        to.copy_rows_from(*to_k, first, from.get(*k), from_first, n);
        to.copy_rows_from(*to_v, first, from.get(*v), from_first, n);
    }

    /// Copies the last of the `n` rows of `shared`, as many as stay, behind the entries. They count when
    /// [`LayerCache::append_staged`] says so.
    ///
    /// # Panics
    /// Without room for them.
    pub(in crate::session) fn copy_last_from(&self, shared: &LayerCache, n: usize) {
        let stay = self.that_stay(n);
        shared.copy_rows_to(n - stay, stay, self, self.len);
    }

    /// As [`LayerCache::append`], of entries of which the last lie behind those there were: these stay alone.
    pub(in crate::session) fn append_staged(&mut self, kept: Kept, first: usize, n: usize) {
        let before = self.len;
        self.append(kept, first, n);
        let stay = self.that_stay(self.len);
        self.move_to_front(before, stay);
        self.count_forgotten(stay);
    }

    /// Whether the cache can begin again behind its first `n` entries, of as many tokens: all that the next one sees is there, or
    /// was kept.
    pub(in crate::session) fn can_begin_at(&self, n: usize) -> bool {
        (self.oldest_end() <= n && n <= self.end()) || self.kept_end() == Some(n)
    }

    /// Begins again behind the first `n` entries.
    ///
    /// # Panics
    /// If it cannot ([`LayerCache::can_begin_at`]).
    pub(in crate::session) fn rewind(&mut self, n: usize) {
        if n == 0 {
            return self.clear();
        }
        self.forget_kept_behind(n);
        if self.oldest_end() <= n && n <= self.end() {
            (self.len, self.least, self.positions) = (n - self.forgotten, 0, None);
        } else {
            let kept = self.kept.as_ref().filter(|kept| kept.end() == n).expect("entries behind so many tokens");
            kept.copy_to(self);
            (self.len, self.forgotten, self.least, self.positions) = (kept.len, kept.forgotten, 0, None);
        }
        self.least = self.oldest_end();
    }

    /// Tokens behind which entries were kept.
    pub(in crate::session) fn kept_end(&self) -> Option<usize> {
        self.kept.as_ref().map(|kept| kept.end())
    }

    /// Keeps what the next token sees, in a layer with a window.
    ///
    /// # Errors
    /// Out of memory: then nothing is kept.
    pub(in crate::session) fn keep(&mut self) -> Result<(), GgmlError> {
        if self.window.is_none() {
            return Ok(());
        }
        let n = self.that_stay(self.len);
        let mut kept = self.kept.take().unwrap_or_else(|| Box::new(self.another()));
        kept.clear();
        kept.reserve(n)?;
        self.copy_rows_to(self.len - n, n, &kept, 0);
        (kept.len, kept.forgotten) = (n, self.end() - n);
        self.kept = Some(kept);
        Ok(())
    }

    /// Forgets what was kept.
    pub(in crate::session) fn forget_kept(&mut self) {
        self.kept = None;
    }

    /// Forgets what was kept, if that was behind more than `n` tokens: others may follow them.
    pub(in crate::session) fn forget_kept_behind(&mut self, n: usize) {
        if self.kept_end().is_some_and(|end| end > n) {
            self.forget_kept();
        }
    }

    /// The last entries of the first `n` tokens, as many as stay of a document: where they are, and the first row of them.
    pub(in crate::session) fn of_document(&self, n: usize) -> Option<(&LayerCache, usize)> {
        let first = n - self.that_stay(n);
        let has = |cache: &&LayerCache| cache.forgotten <= first && n <= cache.end();
        let cache = [Some(self), self.kept.as_deref()].into_iter().flatten().find(has)?;
        Some((cache, first - cache.forgotten))
    }

    /// What was written are the entries that stay of a document of `n` tokens.
    pub(in crate::session) fn count_document(&mut self, n: usize) {
        self.len = self.that_stay(n);
        self.forgotten = n - self.len;
        self.least = self.oldest_end();
    }
}
