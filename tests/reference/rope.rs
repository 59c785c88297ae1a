//! Rotary embedding with linear, YaRN and per-frequency scaling, as ggml's `rope_ext` defines it.

/// The rotation of one layer.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Pairs are neighbours (llama) rather than half the rotated width apart (NeoX).
    pub interleaved: bool,
    /// Rotated dimensions of a head; the rest stays.
    pub n_rot: usize,
    pub base: f32,
    /// Reciprocal of the scaling factor.
    pub freq_scale: f32,
    /// 1 with YaRN, else 0.
    pub ext_factor: f32,
    /// Factor on the rotated values.
    pub attn_factor: f32,
    /// Original context length, for YaRN's ramp.
    pub n_ctx_orig: usize,
    /// Divisors of the frequencies, `n_rot / 2`.
    pub factors: Option<Vec<f32>>,
}

/// YaRN: below this many rotations over the original context a frequency is interpolated, above the first it is kept.
const BETA_FAST: f32 = 32.0;
const BETA_SLOW: f32 = 1.0;

impl Rope {
    /// Rotates one head at a position.
    pub fn rotate(&self, head: &mut [f32], position: usize) {
        let half = self.n_rot / 2;
        // In f32, step by step: the rounding of the angle is part of the models' arithmetic at large positions.
        let step = self.base.powf(-2.0 / self.n_rot as f32);
        let mut theta = position as f32;
        for i in 0..half {
            let (cos, sin) = self.cos_sin(theta, i);
            let (a, b) = if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
            let (x, y) = (head[a], head[b]);
            head[a] = x * cos - y * sin;
            head[b] = x * sin + y * cos;
            theta *= step;
        }
    }

    fn cos_sin(&self, theta: f32, pair: usize) -> (f32, f32) {
        let extrapolated = theta / self.factors.as_ref().map_or(1.0, |f| f[pair]);
        let interpolated = self.freq_scale * extrapolated;
        let mut angle = interpolated;
        let mut size = self.attn_factor;
        if self.ext_factor != 0.0 {
            let keep = self.ramp(pair) * self.ext_factor;
            angle = interpolated * (1.0 - keep) + extrapolated * keep;
            size *= 1.0 + 0.1 * (1.0 / self.freq_scale).ln();
        }
        (angle.cos() * size, angle.sin() * size)
    }

    /// 1 where the frequency is fast enough to be kept, 0 where it is interpolated in full, linear between.
    fn ramp(&self, pair: usize) -> f32 {
        let dim_of = |rotations: f32| {
            let turns = self.n_ctx_orig as f32 / (rotations * 2.0 * std::f32::consts::PI);
            self.n_rot as f32 * turns.ln() / (2.0 * self.base.ln())
        };
        let low = dim_of(BETA_FAST).floor().max(0.0);
        let high = dim_of(BETA_SLOW).ceil().min(self.n_rot as f32 - 1.0);
        let y = (pair as f32 - low) / (high - low).max(0.001);
        1.0 - y.clamp(0.0, 1.0)
    }
}

/// The factor on rotated values that a model with this scaling wants: YaRN's own `1 + 0.1 ln(factor)` is applied in the
/// rotation, so it cancels here, for factors above one.
pub fn yarn_attn_factor(freq_scale: f32, attn_factor: f32) -> f32 {
    let factor = 1.0 / freq_scale;
    let wanted = if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 };
    wanted / (1.0 + 0.1 * factor.ln()) * attn_factor
}
