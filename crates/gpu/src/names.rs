//! Names of the forms of products, for those who want to know which of them takes how long.

use crate::gemm;
use crate::product::{Form, Of};

/// What a form of the product of few rows does, with which format.
pub(crate) fn product(form: &Form) -> String {
    let of = match form.of {
        Of::One => String::new(),
        Of::Each(None) => ", together".to_owned(),
        Of::Each(Some(other)) => format!(", together with {other}"),
        Of::Experts => ", experts".to_owned(),
        Of::Choice(_) => ", choosing experts".to_owned(),
    };
    format!("product{} {}{of}", fused(form.is_fused), form.format)
}

/// The same of products of many rows.
pub(crate) fn gemm(form: &gemm::Form) -> String {
    let of = if form.is_grouped { ", experts" } else { "" };
    format!("GEMM{} {}{of}", fused(form.is_fused), form.format)
}

fn fused(is_fused: bool) -> &'static str {
    if is_fused { " gate+up" } else { "" }
}
