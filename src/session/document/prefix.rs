//! What a session has of the tokens that it read last.

use crate::session::residual::Residual;

/// What a session has of the tokens that it read last: the entries of the layers before `cut` are in the sequence's caches.
pub(in crate::session) struct Prefix {
    pub(super) tokens: Vec<u32>,
    /// Layers that computed every token; all layers of a dense prompt.
    pub(super) cut: usize,
    pub(super) n_layer: usize,
    /// What leaves these layers, unless they are all.
    pub(super) residual: Residual,
    /// The first tokens, which are the document.
    pub(super) n_document: usize,
    /// The first tokens that will be it, once what was cut off to be read again is there.
    pub(super) n_again: usize,
}

impl Prefix {
    pub(super) fn new(cut: usize, n_layer: usize, residual: Residual) -> Prefix {
        Prefix { tokens: Vec::new(), cut, n_layer, residual, n_document: 0, n_again: 0 }
    }

    /// Layers before the first one that skips.
    pub(in crate::session) fn cut(&self) -> usize {
        self.cut
    }

    /// The tokens whose entries and rows are there.
    pub(in crate::session) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Bytes of the residual stream.
    pub(in crate::session) fn residual_bytes(&self) -> usize {
        self.residual.n_bytes()
    }

    /// Forgets what is behind the first `n` tokens.
    pub(in crate::session) fn truncate(&mut self, n: usize) {
        self.tokens.truncate(n);
        self.n_document = self.n_document.min(self.tokens.len());
        self.n_again = self.n_document;
    }

    /// All layers have read these behind the `n_past` tokens of a prompt, which is kept if it is dense and what is there is all of
    /// it.
    pub(in crate::session) fn extend_dense(&mut self, n_past: usize, tokens: &[u32]) {
        if self.is_dense() && n_past > 0 && self.tokens.len() == n_past {
            self.extend(tokens);
        }
    }

    pub(super) fn extend(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
        self.n_document = self.n_document.max(self.n_again.min(self.tokens.len()));
    }

    pub(super) fn is_dense(&self) -> bool {
        self.cut == self.n_layer
    }

    /// Whether a prompt whose first `dense` layers compute every token can begin with this.
    pub(super) fn serves(&self, dense: usize) -> bool {
        if dense == self.n_layer { self.is_dense() } else { 0 < self.cut && self.cut <= dense }
    }
}
