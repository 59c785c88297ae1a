//! Low-rank proxy of one layer's FFN: truncated SVDs of its restricted matrices (LTP step 3).
//!
//! The proxy of eq. "proxy(x) = U_d V_d (act(V_g U_g^T x) * (V_u U_u^T x))" is stored so that every
//! product is a plain ggml `mul_mat` (weights `[n_in, n_out]`, activations `[n_in, n]`):
//!
//! ```text
//! p = mul_mat(u_gu,   x)        u_gu   [n_embd, 2 rank]   p [2 rank, n]
//! g = mul_mat(v_gate, p[..r])   v_gate [rank, d_low]      g [d_low, n]
//! u = mul_mat(v_up,   p[r..])   v_up   [rank, d_low]      u [d_low, n]
//! o = mul_mat(v_down, act(g)*u) v_down [d_low, rank]      o [rank, n]
//! C = ||o||_2
//! ```
//!
//! Singular values sit in the V factors. U_d is orthonormal, so `||o||` is the norm of the whole proxy
//! exactly, and U_d is neither stored nor computed.
//!
//! # The route
//! Singular vectors come from an eigendecomposition, in f64, of the Gram matrix of the smaller side (d_low
//! as a rule). The Gram matrix squares the condition number, which f64 affords: weights are f32, or
//! dequantized from far less, and singular values below 1e-6 of the largest are below their rounding. Such
//! directions are dropped (zero columns). `examples/svd_routes.rs` measures this route against others.

use faer::linalg::matmul::{matmul, triangular};
use faer::{Accum, Mat, MatRef, Par, Side};
use half::f16;
use rayon::prelude::*;
use thiserror::Error;

use crate::activation::Activation;
use crate::sizes::ProxySize;

/// Singular values below this share of the largest count as zero: f32 weights do not determine them.
const NEGLIGIBLE: f64 = 1e-6;

/// Why a proxy could not be built.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProxyError {
    /// A matrix has not the size that n_embd and d_low ask for.
    #[error("FFN proxy: {matrix} has {found} values, expected {n_in} x {n_out}")]
    Shape {
        /// Name of the matrix, for the message.
        matrix: &'static str,
        /// Values that the matrix has.
        found: usize,
        /// First dimension expected.
        n_in: usize,
        /// Second dimension expected.
        n_out: usize,
    },
    /// A size is zero, or a rank larger than the matrices'.
    #[error("FFN proxy: {what} is {found}, expected 1 to {max}")]
    Size {
        /// Name of the size, for the message.
        what: &'static str,
        /// Value that the size has.
        found: usize,
        /// The largest that is possible.
        max: usize,
    },
    /// A channel index beyond the layer.
    #[error("FFN proxy: channel {channel} is chosen, the layer has {n_ff}")]
    Channel {
        /// Index of the chosen channel.
        channel: u32,
        /// Channels of the layer.
        n_ff: usize,
    },
    /// NaN or infinity among the weights.
    #[error("FFN proxy: {matrix} has a weight that is not finite; is the model file damaged?")]
    NotFinite {
        /// Name of the matrix, for the message.
        matrix: &'static str,
    },
    /// The eigendecomposition did not converge.
    #[error("FFN proxy: the eigendecomposition of {matrix} did not converge")]
    Eigen {
        /// Name of the matrix, for the message.
        matrix: &'static str,
    },
    /// A value of the proxy is beyond what F16 holds.
    #[error("FFN proxy: {matrix} holds {value}, beyond F16's 65504; store it in F32")]
    F16Range {
        /// Name of the factor that holds the value.
        matrix: &'static str,
        /// The value, printed.
        value: String,
    },
}

/// The dense FFN matrices of one layer, restricted to the `d_low` chosen channels.
#[derive(Debug, Clone, Copy)]
pub struct RestrictedFfn<'a> {
    /// Size of the hidden state.
    pub n_embd: usize,
    /// Number of FFN channels that the proxy keeps.
    pub d_low: usize,
    /// Rows of ffn_gate, `[n_embd, d_low]`.
    pub gate: &'a [f32],
    /// Rows of ffn_up, `[n_embd, d_low]`.
    pub up: &'a [f32],
    /// Columns of ffn_down, `[d_low, n_embd]`: each row of ffn_down with only the chosen channels
    /// left ([`gather_columns`]).
    pub down: &'a [f32],
}

/// The proxy of one layer, in f32. Shapes in ggml order; the module's head says how they are used.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerProxy {
    /// Size of the hidden state.
    pub n_embd: usize,
    /// Number of FFN channels that the proxy keeps.
    pub d_low: usize,
    /// Rank of each factor.
    pub rank: usize,
    /// U_g and U_u side by side, `[n_embd, 2 * rank]`, each with orthonormal (or zero) rows of n_embd.
    pub u_gu: Vec<f32>,
    /// Singular values times V_g, `[rank, d_low]`.
    pub v_gate: Vec<f32>,
    /// Singular values times V_u, `[rank, d_low]`.
    pub v_up: Vec<f32>,
    /// Singular values times V_d, `[d_low, rank]`, by descending singular value.
    pub v_down: Vec<f32>,
}

/// A [`LayerProxy`] rounded to F16, as the sidecar stores it; the same shapes.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerProxyF16 {
    /// `[n_embd, 2 * rank]`
    pub u_gu: Vec<f16>,
    /// `[rank, d_low]`
    pub v_gate: Vec<f16>,
    /// `[rank, d_low]`
    pub v_up: Vec<f16>,
    /// `[d_low, rank]`
    pub v_down: Vec<f16>,
}

/// Rows `channels` of `weight` (`[n_embd, n_ff]`, ffn_gate or ffn_up) as `[n_embd, channels.len()]`.
///
/// # Errors
/// A wrong length or a channel beyond `n_ff`.
pub fn gather_rows(weight: &[f32], n_embd: usize, n_ff: usize, channels: &[u32]) -> Result<Vec<f32>, ProxyError> {
    check_len("ffn_gate or ffn_up", weight, n_embd, n_ff)?;
    check_channels(channels, n_ff)?;
    let mut out = Vec::with_capacity(n_embd * channels.len());
    for &c in channels {
        out.extend_from_slice(&weight[c as usize * n_embd..][..n_embd]);
    }
    Ok(out)
}

/// Columns `channels` of `weight` (`[n_ff, n_rows]`, ffn_down or some rows of it) as
/// `[channels.len(), n_rows]`. It may be called for each dequantized row (`n_rows` 1).
///
/// # Errors
/// A wrong length or a channel beyond `n_ff`.
pub fn gather_columns(weight: &[f32], n_ff: usize, n_rows: usize, channels: &[u32]) -> Result<Vec<f32>, ProxyError> {
    check_len("ffn_down", weight, n_ff, n_rows)?;
    check_channels(channels, n_ff)?;
    let mut out = Vec::with_capacity(n_rows * channels.len());
    for row in weight.chunks_exact(n_ff.max(1)) {
        out.extend(channels.iter().map(|&c| row[c as usize]));
    }
    Ok(out)
}

fn check_channels(channels: &[u32], n_ff: usize) -> Result<(), ProxyError> {
    match channels.iter().find(|&&c| c as usize >= n_ff) {
        Some(&channel) => Err(ProxyError::Channel { channel, n_ff }),
        None => Ok(()),
    }
}

fn check_len(matrix: &'static str, values: &[f32], n_in: usize, n_out: usize) -> Result<(), ProxyError> {
    if n_in.checked_mul(n_out) == Some(values.len()) {
        return Ok(());
    }
    Err(ProxyError::Shape { matrix, found: values.len(), n_in, n_out })
}

impl LayerProxy {
    /// Builds the proxy of rank `rank`; the three matrices run in parallel on the current rayon pool.
    ///
    /// # Errors
    /// Wrong sizes (`rank` has to be 1 to `min(d_low, n_embd)`, see [`ProxySize::clamp_to`]), weights
    /// that are not finite, or an eigendecomposition that does not converge.
    pub fn build(ffn: &RestrictedFfn<'_>, rank: usize) -> Result<Self, ProxyError> {
        let (n_embd, d_low) = (ffn.n_embd, ffn.d_low);
        for (what, found) in [("n_embd", n_embd), ("d_low", d_low)] {
            if found == 0 {
                let max = usize::MAX;
                return Err(ProxyError::Size { what, found, max });
            }
        }
        let max = n_embd.min(d_low);
        if rank == 0 || rank > max {
            return Err(ProxyError::Size { what: "rank", found: rank, max });
        }
        for (matrix, values, n_in, n_out) in [
            ("ffn_gate", ffn.gate, n_embd, d_low),
            ("ffn_up", ffn.up, n_embd, d_low),
            ("ffn_down", ffn.down, d_low, n_embd),
        ] {
            check_len(matrix, values, n_in, n_out)?;
            if !values.iter().all(|v| v.is_finite()) {
                return Err(ProxyError::NotFinite { matrix });
            }
        }

        // In ggml order gate and up are column-major n_embd x d_low, and down is row-major.
        let gate = || truncate("ffn_gate", columns(ffn.gate, n_embd, d_low), rank, true);
        let up = || truncate("ffn_up", columns(ffn.up, n_embd, d_low), rank, true);
        let down = || {
            let down = columns(ffn.down, d_low, n_embd).transpose();
            truncate("ffn_down", down, rank, false)
        };
        let (gate, (up, down)) = rayon::join(gate, || rayon::join(up, down));
        let (gate, up, down) = (gate?, up?, down?);

        let mut u_gu = Vec::with_capacity(2 * rank * n_embd);
        for factor in [&gate, &up] {
            push_columns(&mut u_gu, factor.u.as_ref());
        }
        Ok(Self {
            n_embd,
            d_low,
            rank,
            u_gu,
            v_gate: row_major(gate.sv.as_ref()),
            v_up: row_major(up.sv.as_ref()),
            v_down: {
                let mut v = Vec::with_capacity(rank * d_low);
                push_columns(&mut v, down.sv.as_ref());
                v
            },
        })
    }

    /// Rank and number of channels of the proxy.
    pub fn size(&self) -> ProxySize {
        ProxySize { d_low: self.d_low, rank: self.rank }
    }

    /// C of each token, `[n]`: the norm of the proxy's output for `x` of shape `[n_embd, n]`, in f32.
    ///
    /// This is the definition, for tests and offline evaluation; the runtime computes it in its graph.
    ///
    /// # Errors
    /// A length of `x` that is no multiple of n_embd.
    pub fn norms(&self, x: &[f32], act: Activation) -> Result<Vec<f32>, ProxyError> {
        if !x.len().is_multiple_of(self.n_embd) {
            return Err(ProxyError::Shape {
                matrix: "the input",
                found: x.len(),
                n_in: self.n_embd,
                n_out: x.len().div_ceil(self.n_embd),
            });
        }
        let r = self.rank;
        Ok(x.par_chunks_exact(self.n_embd)
            .map(|x| {
                let p = mul_mat(&self.u_gu, x);
                let g = mul_mat(&self.v_gate, &p[..r]);
                let u = mul_mat(&self.v_up, &p[r..]);
                let a: Vec<f32> = g.iter().zip(&u).map(|(&g, &u)| act.apply(g) * u).collect();
                let o = mul_mat(&self.v_down, &a);
                o.iter().map(|v| v * v).sum::<f32>().sqrt()
            })
            .collect())
    }

    /// This proxy with its values in F16.
    ///
    /// # Errors
    /// [`ProxyError::F16Range`] if a value is too large for F16.
    pub fn to_f16(&self) -> Result<LayerProxyF16, ProxyError> {
        Ok(LayerProxyF16 {
            u_gu: halves("u_gu", &self.u_gu)?,
            v_gate: halves("v_gate", &self.v_gate)?,
            v_up: halves("v_up", &self.v_up)?,
            v_down: halves("v_down", &self.v_down)?,
        })
    }
}

/// ggml's product of `weight` `[n_in, n_out]` with one column `x` `[n_in]`.
fn mul_mat(weight: &[f32], x: &[f32]) -> Vec<f32> {
    weight.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn halves(matrix: &'static str, values: &[f32]) -> Result<Vec<f16>, ProxyError> {
    values
        .iter()
        .map(|&v| {
            let h = f16::from_f32(v);
            if h.is_finite() {
                Ok(h)
            } else {
                let value = v.to_string();
                Err(ProxyError::F16Range { matrix, value })
            }
        })
        .collect()
}

/// A column-major view.
fn columns(values: &[f32], n_rows: usize, n_cols: usize) -> MatRef<'_, f32> {
    MatRef::from_column_major_slice(values, n_rows, n_cols)
}

fn push_columns(out: &mut Vec<f32>, m: MatRef<'_, f64>) {
    for c in 0..m.ncols() {
        out.extend((0..m.nrows()).map(|r| m[(r, c)] as f32));
    }
}

fn row_major(m: MatRef<'_, f64>) -> Vec<f32> {
    let mut out = Vec::with_capacity(m.nrows() * m.ncols());
    push_columns(&mut out, m.transpose());
    out
}

/// `A ~ u * sv^T` with orthonormal `u`.
struct Factors {
    /// `D x rank`, or empty where it was not asked for.
    u: Mat<f64>,
    /// `d_low x rank`: right singular vectors times their singular values.
    sv: Mat<f64>,
}

/// The best rank-`rank` approximation of `a` (`D x d_low`), by descending singular value.
fn truncate(matrix: &'static str, a: MatRef<'_, f32>, rank: usize, want_u: bool) -> Result<Factors, ProxyError> {
    let (n_rows, n_cols) = a.shape();
    let a = Mat::from_fn(n_rows, n_cols, |i, j| f64::from(a[(i, j)]));
    let narrow = n_cols <= n_rows;
    let gram = if narrow { gram(a.transpose(), a.as_ref()) } else { gram(a.as_ref(), a.transpose()) };
    let eigen = gram.self_adjoint_eigen(Side::Lower).map_err(|_| ProxyError::Eigen { matrix })?;
    // faer sorts ascending: the last `rank` columns, backwards.
    let n = gram.nrows();
    let vectors = eigen.U().subcols(n - rank, rank).reverse_cols();

    // The other side's singular vectors times singular values, from the matrix itself: exact to f64
    // whatever the eigenvalues' error.
    let mut other = Mat::zeros(if narrow { n_rows } else { n_cols }, rank);
    if want_u || !narrow {
        let a = if narrow { a.as_ref() } else { a.transpose() };
        matmul(other.as_mut(), Accum::Replace, a, vectors, 1.0, Par::Seq);
    }
    if !narrow {
        return Ok(Factors { u: vectors.to_owned(), sv: other });
    }
    let values = eigen.S();
    let largest = values[n - 1].max(0.0).sqrt();
    let mut sv = vectors.to_owned();
    for k in 0..rank {
        let sigma = if want_u { other.col(k).norm_l2() } else { values[n - 1 - k].max(0.0).sqrt() };
        let kept = sigma > NEGLIGIBLE * largest;
        let (scale, unscale) = if kept { (sigma, 1.0 / sigma) } else { (0.0, 0.0) };
        for i in 0..n_cols {
            sv[(i, k)] *= scale;
        }
        for i in 0..n_rows {
            other[(i, k)] *= unscale;
        }
    }
    Ok(Factors { u: other, sv })
}

/// Lower half of `left * right`, a symmetric product; the upper half stays zero.
fn gram(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    use triangular::BlockStructure::{Rectangular, TriangularLower};
    let mut out = Mat::zeros(left.nrows(), left.nrows());
    triangular::matmul(
        out.as_mut(),
        TriangularLower,
        Accum::Replace,
        left,
        Rectangular,
        right,
        Rectangular,
        1.0,
        Par::Seq,
    );
    out
}
