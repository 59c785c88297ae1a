//! The activation between the gate and the product of a gated FFN.

/// Activation of a gated feed-forward network, `act` in `W_d (act(W_g x) * (W_u x))`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`: Llama, Qwen, SmolLM.
    Silu,
    /// GELU in its tanh form: Gemma.
    GeluTanh,
    /// The rectifier `max(x, 0)`.
    Relu,
}

impl Activation {
    /// The activation of one value, in f32.
    pub fn apply(self, x: f32) -> f32 {
        match self {
            Self::Silu => x / (1.0 + (-x).exp()),
            Self::GeluTanh => {
                const SQRT_2_OVER_PI: f32 = 0.797_884_6;
                0.5 * x * (1.0 + (SQRT_2_OVER_PI * x * (1.0 + 0.044_715 * x * x)).tanh())
            }
            Self::Relu => x.max(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert!((Activation::Silu.apply(1.0) - 0.731_058_6).abs() < 1e-6);
        assert!((Activation::GeluTanh.apply(1.0) - 0.841_192).abs() < 1e-5);
        assert_eq!(Activation::Relu.apply(-2.0), 0.0);
        // Far out neither overflows into NaN.
        assert_eq!(Activation::Silu.apply(-1e4), 0.0);
        assert_eq!(Activation::GeluTanh.apply(1e4), 1e4);
    }
}
