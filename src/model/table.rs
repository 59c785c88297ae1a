//! The weight table: which weights a model has, their shapes, and where their bytes lie in the file.

use std::collections::HashSet;
use std::ops::Range;

use crate::gguf::{GgmlType, Gguf, TensorInfo};
use crate::graph::ir::WeightId;

use super::{Arch, ModelError};

/// How a weight is used, which decides where it may be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Factor of matrix products alone: may be repacked.
    Matrix,
    /// Rows are looked up (embedding), perhaps multiplied by as well (tied output).
    Embedding,
    /// Rows are looked up, by every layer some of their features.
    LayerRows,
    /// Matrices of which each row takes a few: read where they lie.
    Experts,
    /// What chooses among experts, and their biases: small, and wherever they may be computed.
    BesideExperts,
    /// Norm, bias, rope factors: F32.
    Vector,
}

/// One weight. A fused product of the file (QKV, gate and up) is several weights, each a range of its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Weight {
    /// Name, as the field's GGUF names go; for a part of a fused product the name of the unfused one.
    pub name: String,
    /// Tensor of the file that holds it.
    pub tensor: String,
    /// Element type.
    pub ty: GgmlType,
    /// `[n_in, n_out]`, `[n_in, n_out, n_expert]`, `[n]` or `[n, n_expert]`.
    pub ne: Vec<usize>,
    /// Bytes within the tensor's data.
    pub bytes: Range<usize>,
    /// Use.
    pub role: Role,
    /// Layer, or `None` for embedding, output and their norms.
    pub layer: Option<usize>,
}

/// All weights of a model, looked up by name and shape while the architecture is loaded.
pub struct WeightTable<'g> {
    gguf: &'g Gguf,
    file: String,
    weights: Vec<Weight>,
    used: HashSet<String>,
    unused: Vec<String>,
    layer: Option<usize>,
}

impl<'g> WeightTable<'g> {
    /// An empty table over a file.
    pub fn new(gguf: &'g Gguf) -> Self {
        Self {
            gguf,
            file: gguf.path().display().to_string(),
            weights: Vec::new(),
            used: HashSet::new(),
            unused: Vec::new(),
            layer: None,
        }
    }

    /// Weights looked up from now on belong to this layer.
    pub fn set_layer(&mut self, layer: Option<usize>) {
        self.layer = layer;
    }

    /// The layer that weights are looked up for.
    pub fn layer(&self) -> Option<usize> {
        self.layer
    }

    /// Name of a tensor of the current layer.
    fn name(&self, base: &str) -> String {
        match self.layer {
            Some(l) => format!("blk.{l}.{base}"),
            None => base.to_string(),
        }
    }

    /// True if the file has such a tensor in the current layer.
    pub fn has(&self, base: &str) -> bool {
        self.gguf.tensor(&self.name(base)).is_some()
    }

    fn find(&mut self, base: &str, ne: &[usize]) -> Result<&'g TensorInfo, ModelError> {
        let name = self.name(base);
        let info = self
            .gguf
            .tensor(&name)
            .ok_or_else(|| ModelError::MissingTensor { file: self.file.clone(), tensor: name.clone() })?;
        // Trailing ones carry no meaning, on either side.
        let n_dims = info.shape.len().max(ne.len());
        if !(0..n_dims).all(|i| info.dim(i) == ne.get(i).map_or(1, |&d| d as u64)) {
            return Err(ModelError::WrongShape {
                file: self.file.clone(),
                tensor: name,
                found: info.shape.clone(),
                expected: ne.to_vec(),
            });
        }
        self.used.insert(name);
        Ok(info)
    }

    fn push(&mut self, weight: Weight) -> WeightId {
        self.weights.push(weight);
        WeightId(self.weights.len() as u32 - 1)
    }

    /// A matrix `[n_in, n_out]`.
    pub fn matrix(&mut self, base: &str, n_in: usize, n_out: usize, role: Role) -> Result<WeightId, ModelError> {
        let info = self.find(base, &[n_in, n_out])?;
        self.check_matrix_type(info)?;
        let (name, layer) = (info.name.clone(), self.layer);
        let bytes = 0..info.nbytes as usize;
        Ok(self.push(Weight { tensor: name.clone(), name, ty: info.ty, ne: vec![n_in, n_out], bytes, role, layer }))
    }

    /// Matrices `[n_in, n_out, n_expert]`.
    pub fn experts(&mut self, base: &str, ne: [usize; 3]) -> Result<WeightId, ModelError> {
        let info = self.find(base, &ne)?;
        self.check_matrix_type(info)?;
        let (name, layer) = (info.name.clone(), self.layer);
        let bytes = 0..info.nbytes as usize;
        let (ne, role) = (ne.to_vec(), Role::Experts);
        Ok(self.push(Weight { tensor: name.clone(), name, ty: info.ty, ne, bytes, role, layer }))
    }

    /// Rows `rows` of a fused matrix `[n_in, n_total]`, under the name of the unfused one.
    pub fn part(
        &mut self,
        base: &str,
        n_in: usize,
        n_total: usize,
        rows: Range<usize>,
        part: &str,
    ) -> Result<WeightId, ModelError> {
        let info = self.find(base, &[n_in, n_total])?;
        self.check_matrix_type(info)?;
        let row = info.nbytes as usize / n_total;
        let weight = Weight {
            name: self.name(part),
            tensor: info.name.clone(),
            ty: info.ty,
            ne: vec![n_in, rows.len()],
            bytes: rows.start * row..rows.end * row,
            role: Role::Matrix,
            layer: self.layer,
        };
        Ok(self.push(weight))
    }

    /// An F32 vector `[n]`: norm, bias, factors.
    pub fn vector(&mut self, base: &str, n: usize) -> Result<WeightId, ModelError> {
        self.vector_part(base, n, 0..n, base)
    }

    /// Elements `part` of a fused F32 vector `[n_total]`, under the name of the unfused one.
    pub fn vector_part(
        &mut self,
        base: &str,
        n_total: usize,
        part: Range<usize>,
        name: &str,
    ) -> Result<WeightId, ModelError> {
        let info = self.find(base, &[n_total])?;
        self.check_f32(info)?;
        let weight = Weight {
            tensor: info.name.clone(),
            name: self.name(name),
            ty: info.ty,
            ne: vec![part.len()],
            bytes: part.start * size_of::<f32>()..part.end * size_of::<f32>(),
            role: Role::Vector,
            layer: self.layer,
        };
        Ok(self.push(weight))
    }

    /// F32 vectors `[n, count]`, one for each of as many experts, or one for all.
    pub fn vectors(&mut self, base: &str, n: usize, count: usize) -> Result<WeightId, ModelError> {
        let info = self.find(base, &[n, count])?;
        self.check_f32(info)?;
        let (name, layer) = (info.name.clone(), self.layer);
        let (ne, bytes, role) = (vec![n, count], 0..info.nbytes as usize, Role::BesideExperts);
        Ok(self.push(Weight { tensor: name.clone(), name, ty: info.ty, ne, bytes, role, layer }))
    }

    /// An F32 matrix `[n_in, n_out]` that no product is made with, such as the kernels of a convolution.
    pub fn kernels(&mut self, base: &str, n_in: usize, n_out: usize) -> Result<WeightId, ModelError> {
        let info = self.find(base, &[n_in, n_out])?;
        self.check_f32(info)?;
        let (name, layer, ne) = (info.name.clone(), self.layer, vec![n_in, n_out]);
        let bytes = 0..info.nbytes as usize;
        Ok(self.push(Weight { tensor: name.clone(), name, ty: info.ty, ne, bytes, role: Role::Vector, layer }))
    }

    /// As [`WeightTable::part`], of a matrix that all layers have together, for the current one.
    pub fn part_of_all(
        &mut self,
        base: &str,
        n_in: usize,
        n_total: usize,
        rows: Range<usize>,
    ) -> Result<WeightId, ModelError> {
        let layer = self.layer.take();
        let info = self.find(base, &[n_in, n_total]);
        self.layer = layer;
        let info = info?;
        self.check_matrix_type(info)?;
        let (row, tensor) = (info.nbytes as usize / n_total, info.name.clone());
        let (ne, bytes) = (vec![n_in, rows.len()], rows.start * row..rows.end * row);
        Ok(self.push(Weight { name: self.name(base), tensor, ty: info.ty, ne, bytes, role: Role::Matrix, layer }))
    }

    /// Checks that rows of a matrix that was looked up can be cut into runs of `n` columns: of its quantized blocks each is whole.
    pub fn check_columns(&self, base: &str, n: usize) -> Result<(), ModelError> {
        let name = self.name(base);
        match self.gguf.tensor(&name) {
            Some(info) if !n.is_multiple_of(info.ty.block_size()) => Err(ModelError::WrongType {
                file: self.file.clone(),
                tensor: name,
                found: info.ty.name().into(),
                expected: format!("a type whose blocks divide {n} features"),
            }),
            _ => Ok(()),
        }
    }

    /// A vector that a file may lack.
    pub fn optional_vector(&mut self, base: &str, n: usize) -> Result<Option<WeightId>, ModelError> {
        if self.has(base) { self.vector(base, n).map(Some) } else { Ok(None) }
    }

    fn check_f32(&self, info: &TensorInfo) -> Result<(), ModelError> {
        if info.ty == GgmlType::F32 {
            return Ok(());
        }
        Err(ModelError::WrongType {
            file: self.file.clone(),
            tensor: info.name.clone(),
            found: info.ty.name().into(),
            expected: "F32".into(),
        })
    }

    fn check_matrix_type(&self, info: &TensorInfo) -> Result<(), ModelError> {
        if crate::ggml::quantize::can_multiply(info.ty) {
            return Ok(());
        }
        Err(ModelError::WrongType {
            file: self.file.clone(),
            tensor: info.name.clone(),
            found: info.ty.name().into(),
            expected: "a type that ggml multiplies by (F32, F16, BF16, Q4_0 ... Q8_0, Q2_K ... Q6_K, IQ..., MXFP4, NVFP4)".into(),
        })
    }

    /// Notes that a file may have a tensor that nothing is computed with.
    pub fn tolerate(&mut self, base: &str) {
        let name = self.name(base);
        if self.gguf.tensor(&name).is_some() {
            self.unused.push(name);
        }
    }

    /// Notes that nothing is computed with a whole layer.
    pub fn tolerate_layer(&mut self, layer: usize) {
        let prefix = format!("blk.{layer}.");
        self.unused.extend(self.gguf.tensors().filter(|t| t.name.starts_with(&prefix)).map(|t| t.name.clone()));
    }

    /// The finished list, and the tensors of the file that are known and not used.
    ///
    /// # Errors
    /// A tensor that the architecture does not know: what it is for would be missing from every answer.
    pub fn finish(self, arch: Arch) -> Result<(Vec<Weight>, Vec<String>), ModelError> {
        let is_known = |name: &String| self.used.contains(name) || self.unused.contains(name);
        let mut unknown = self.gguf.tensors().filter(|t| !is_known(&t.name));
        match unknown.next() {
            None => Ok((self.weights, self.unused)),
            Some(first) => Err(ModelError::UnknownTensor {
                file: self.file.clone(),
                arch: arch.name(),
                tensor: first.name.escape_debug().to_string(),
                n_more: unknown.count(),
            }),
        }
    }
}
