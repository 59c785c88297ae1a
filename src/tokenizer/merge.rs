//! The merging loop that BPE and SPM share: of all adjacent pairs that may merge, the one of best
//! priority (the leftmost of equals) merges, until none can.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A stretch of the word being tokenized.
#[derive(Clone, Copy, Debug)]
pub(super) struct Symbol {
    /// Byte range in the word.
    pub(super) start: u32,
    pub(super) end: u32,
    /// Its token, or [`NO_TOKEN`].
    pub(super) id: u32,
}

pub(super) const NO_TOKEN: u32 = u32::MAX;

/// What merging a pair gives: `rank` (lower is better) and the token.
#[derive(Clone, Copy)]
pub(super) struct Merge {
    pub(super) rank: u32,
    pub(super) id: u32,
}

const NONE: Merge = Merge { rank: u32::MAX, id: NO_TOKEN };

/// Above this many symbols the heap is faster than scanning.
const SCAN_LIMIT: usize = 48;

/// Scratch memory, reused from word to word.
#[derive(Default)]
pub(super) struct Merger {
    pub(super) symbols: Vec<Symbol>,
    pairs: Vec<Merge>,
    next: Vec<u32>,
    prev: Vec<u32>,
    heap: BinaryHeap<Reverse<u64>>,
}

impl Merger {
    /// Merges `self.symbols` as far as `pair` allows. `pair` must not return a rank of `u32::MAX`.
    pub(super) fn run(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Option<Merge>) {
        if self.symbols.len() < 2 {
            return;
        }
        let pair = |l: &Symbol, r: &Symbol| pair(l, r).unwrap_or(NONE);
        self.pairs.clear();
        self.pairs.extend(self.symbols.windows(2).map(|w| pair(&w[0], &w[1])));
        if self.symbols.len() <= SCAN_LIMIT {
            self.scan(pair);
        } else {
            self.queue(pair);
        }
    }

    /// Quadratic, and the fastest for words of ordinary length.
    fn scan(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Merge) {
        let (symbols, pairs) = (&mut self.symbols, &mut self.pairs);
        loop {
            let mut best = (u32::MAX, 0);
            for (i, p) in pairs.iter().enumerate() {
                if p.rank < best.0 {
                    best = (p.rank, i);
                }
            }
            let (rank, i) = best;
            if rank == u32::MAX {
                return;
            }
            symbols[i].id = pairs[i].id;
            symbols[i].end = symbols[i + 1].end;
            symbols.remove(i + 1);
            pairs.remove(i);
            if i > 0 {
                pairs[i - 1] = pair(&symbols[i - 1], &symbols[i]);
            }
            if i + 1 < symbols.len() {
                pairs[i] = pair(&symbols[i], &symbols[i + 1]);
            }
        }
    }

    /// O(n log n): a linked list of symbols and a heap of (rank, left position). An entry is
    /// stale when the pair now at its position has another rank.
    fn queue(&mut self, pair: impl Fn(&Symbol, &Symbol) -> Merge) {
        const END: u32 = u32::MAX;
        let n = self.symbols.len();
        let entry = |rank: u32, left: usize| Reverse(u64::from(rank) << 32 | left as u64);
        self.pairs.push(NONE);
        self.next.clear();
        self.next.extend((1..n as u32).chain([END]));
        self.prev.clear();
        self.prev.extend([END].into_iter().chain(0..n as u32 - 1));
        let mut heap = std::mem::take(&mut self.heap).into_vec();
        heap.clear();
        let live = self.pairs.iter().enumerate();
        heap.extend(live.filter(|(_, p)| p.rank != u32::MAX).map(|(i, p)| entry(p.rank, i)));
        self.heap = BinaryHeap::from(heap);
        while let Some(Reverse(top)) = self.heap.pop() {
            let (rank, left) = ((top >> 32) as u32, top as u32 as usize);
            if self.pairs[left].rank != rank {
                continue;
            }
            let right = self.next[left] as usize;
            let after = self.next[right];
            self.symbols[left].id = self.pairs[left].id;
            self.symbols[left].end = self.symbols[right].end;
            self.pairs[right] = NONE;
            self.next[left] = after;
            self.pairs[left] = NONE;
            if after != END {
                self.prev[after as usize] = left as u32;
                let p = pair(&self.symbols[left], &self.symbols[after as usize]);
                self.pairs[left] = p;
                if p.rank != u32::MAX {
                    self.heap.push(entry(p.rank, left));
                }
            }
            let before = self.prev[left];
            if before != END {
                let p = pair(&self.symbols[before as usize], &self.symbols[left]);
                self.pairs[before as usize] = p;
                if p.rank != u32::MAX {
                    self.heap.push(entry(p.rank, before as usize));
                }
            }
        }
        let mut kept = 0;
        let mut at = 0;
        while at != END {
            self.symbols[kept] = self.symbols[at as usize];
            kept += 1;
            at = self.next[at as usize];
        }
        self.symbols.truncate(kept);
    }
}

/// Tokens of words already seen in this text: words repeat, and copying is faster than merging.
/// Direct-mapped, so that its cost is bounded whatever the text.
pub(super) struct WordCache<'t> {
    slots: Vec<(&'t [u8], u32, u32)>,
}

impl<'t> WordCache<'t> {
    /// Longer words hardly repeat.
    const MAX_WORD: usize = 48;

    pub(super) fn for_text(len: usize) -> WordCache<'t> {
        let slots = (len / 16).next_power_of_two().clamp(1, 1 << 15);
        WordCache { slots: vec![(&[][..], 0, 0); slots] }
    }

    /// Appends the tokens of `word` to `out`, from memory or by calling `encode`.
    #[inline]
    pub(super) fn tokens(&mut self, word: &'t [u8], out: &mut Vec<u32>, encode: impl FnOnce(&mut Vec<u32>)) {
        if word.len() > Self::MAX_WORD {
            encode(out);
            return;
        }
        let slot = super::vocab::hash_bytes(word) as usize & (self.slots.len() - 1);
        let (known, start, end) = self.slots[slot];
        if known == word && !word.is_empty() {
            out.extend_from_within(start as usize..end as usize);
            return;
        }
        let start = out.len();
        encode(out);
        if let (Ok(start), Ok(end)) = (u32::try_from(start), u32::try_from(out.len())) {
            self.slots[slot] = (word, start, end);
        }
    }
}

/// Between which characters tokens can reach: where no token of the vocabulary holds two classes
/// side by side, no merge crosses, and the text can be cut there without changing the result.
/// Classes: each ASCII character, the space mark U+2581, all others.
pub(super) struct Joints(Vec<bool>);

impl Joints {
    const CLASSES: usize = 130;

    fn class(c: char) -> usize {
        match c as u32 {
            n @ 0..=127 => n as usize,
            0x2581 => 128,
            _ => 129,
        }
    }

    pub(super) fn of_tokens<'a>(texts: impl Iterator<Item = &'a [u8]>) -> Joints {
        let mut joined = vec![false; Self::CLASSES * Self::CLASSES];
        for text in texts {
            let mut last = None;
            for c in String::from_utf8_lossy(text).chars() {
                let class = Self::class(c);
                if let Some(last) = last {
                    joined[last * Self::CLASSES + class] = true;
                }
                last = Some(class);
            }
        }
        Joints(joined)
    }

    /// Calls `part` for the parts of `text` that no token crosses.
    pub(super) fn split<'t>(&self, text: &'t str, mut part: impl FnMut(&'t str)) {
        let mut from = 0;
        let mut last: Option<usize> = None;
        for (i, c) in text.char_indices() {
            let class = Self::class(c);
            if last.is_some_and(|last| !self.0[last * Self::CLASSES + class]) {
                part(&text[from..i]);
                from = i;
            }
            last = Some(class);
        }
        if from < text.len() {
            part(&text[from..]);
        }
    }
}
