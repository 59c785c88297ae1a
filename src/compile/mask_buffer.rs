//! Attention masks: one matrix for all causal tiles of a program, one for all windowed ones, into which every tile looks.

use crate::ggml::Tensor;

/// The kernels read masks so many elements at a time.
pub(super) const ALIGN: usize = 8;

/// Extent of a mask. A larger one serves wherever a smaller one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskSize {
    /// Column of the first row's own key: no query that is masked has its own key further from the first key that is read.
    pub corner: usize,
    /// Queries that are masked at a time.
    pub height: usize,
    /// Columns behind the last query's own key that are read, too.
    pub beyond: usize,
}

impl MaskSize {
    /// Rows: as many again as alignment may skip, and one so that a view that does not begin at its row's start stays inside.
    pub fn rows(&self) -> usize {
        self.height + ALIGN + 1
    }

    /// Columns: the corner, the triangle, what is read behind it. Aligned, or kernels on GPUs would do without what they gain by
    /// heads that share keys, and have none at all for heads of 512 elements.
    pub fn width(&self) -> usize {
        (self.corner + self.height + self.beyond).next_multiple_of(ALIGN)
    }

    /// Whether a mask of this size serves where one of `other` does.
    pub fn covers(&self, other: &MaskSize) -> bool {
        self.corner >= other.corner && self.height >= other.height && self.beyond >= other.beyond
    }

    pub(super) fn with(&self, other: &MaskSize) -> MaskSize {
        MaskSize {
            corner: self.corner.max(other.corner),
            height: self.height.max(other.height),
            beyond: self.beyond.max(other.beyond),
        }
    }

    /// The matrix `[width, rows]` in F16, little-endian: row i lets the columns up to `corner + i` pass (and, with a window, only
    /// the last `window` of them). Long prompts make it large: rows are copied and filled, not computed.
    pub fn bytes(&self, window: Option<usize>) -> Vec<u8> {
        const VISIBLE: u8 = 0; // both bytes of F16's zero
        let width = self.width();
        let mut bytes = half::f16::NEG_INFINITY.to_le_bytes().repeat(width * self.rows());
        for (i, row) in bytes.chunks_exact_mut(2 * width).take(self.height + ALIGN).enumerate() {
            let end = (self.corner + i + 1).min(width);
            let start = window.map_or(0, |w| end.saturating_sub(w));
            row[2 * start..2 * end].fill(VISIBLE);
        }
        bytes
    }
}

/// One F16 matrix that masks every tile of its kind ([`MaskSize::bytes`]). A tile sees it through an offset that puts its own
/// first query on the diagonal.
#[derive(Clone, Copy)]
pub struct MaskBuffer<'a> {
    /// F16 `[width, rows]`
    pub tensor: Tensor<'a>,
    /// Column of the first row's own key.
    pub corner: usize,
}

impl MaskBuffer<'_> {
    /// Row and column where the mask of a tile begins whose first query's own key is column `own`: the column is aligned,
    /// since among the first rows one has its diagonal at the right distance. `None` if `own` lies beyond the corner.
    pub fn start(&self, own: usize) -> Option<(usize, usize)> {
        let row = (own + ALIGN - self.corner % ALIGN) % ALIGN;
        Some((row, (self.corner + row).checked_sub(own)?))
    }
}
