//! Numbers of kinds, for kernels that are compiled for each of them.

use checkpoint::FloatType;

use crate::cpu::integer::Kind;

/// Numbers of kinds: kernels are compiled for each.
pub(crate) struct Id;

impl Id {
    pub(crate) const A2: u8 = 2;
    pub(crate) const A3: u8 = 3;
    pub(crate) const A4: u8 = 4;
    pub(crate) const A5: u8 = 5;
    pub(crate) const A6: u8 = 6;
    pub(crate) const A8: u8 = 8;
    pub(crate) const Q4_0: u8 = 10;
    pub(crate) const Q4_1: u8 = 11;
    pub(crate) const Q5_0: u8 = 12;
    pub(crate) const Q5_1: u8 = 13;
    pub(crate) const Q8_0: u8 = 14;
    pub(crate) const IQ4_NL: u8 = 15;
    pub(crate) const MXFP4: u8 = 16;
    pub(crate) const Q2_K: u8 = 17;
    pub(crate) const Q3_K: u8 = 18;
    pub(crate) const Q4_K: u8 = 19;
    pub(crate) const Q5_K: u8 = 20;
    pub(crate) const Q6_K: u8 = 21;
    pub(crate) const IQ4_XS: u8 = 22;

    /// A kind with this number, for what kinds of the number have in common.
    pub(crate) const fn kind(id: u8) -> Kind {
        match id {
            Self::Q4_0 => Kind::Q4_0,
            Self::Q4_1 => Kind::Q4_1,
            Self::Q5_0 => Kind::Q5_0,
            Self::Q5_1 => Kind::Q5_1,
            Self::Q8_0 => Kind::Q8_0,
            Self::IQ4_NL => Kind::Iq4Nl,
            Self::MXFP4 => Kind::Mxfp4,
            Self::Q2_K => Kind::Q2K,
            Self::Q3_K => Kind::Q3K,
            Self::Q4_K => Kind::Q4K,
            Self::Q5_K => Kind::Q5K,
            Self::Q6_K => Kind::Q6K,
            Self::IQ4_XS => Kind::Iq4Xs,
            bits => Kind::Affine { bits, group: 32, scales: FloatType::F32 },
        }
    }

    /// The largest code of a kind whose codes need less than eight bits.
    #[cfg(target_arch = "x86_64")]
    pub(crate) const fn largest(id: u8) -> i32 {
        match id {
            Self::Q2_K => 3,
            Self::Q3_K => 7,
            Self::Q4_0 | Self::Q4_1 | Self::Q4_K => 15,
            Self::Q5_0 | Self::Q5_1 | Self::Q5_K => 31,
            Self::Q6_K => 63,
            bits => (1 << bits) - 1,
        }
    }
}

/// Calls the version of a kernel that is compiled for a kind.
macro_rules! for_kind {
    ($kind:expr, $kernel:ident $arguments:tt) => {{
        use $crate::cpu::integer::id::Id;
        match $kind {
            Kind::Affine { bits: 2, .. } => $kernel::<{ Id::A2 }> $arguments,
            Kind::Affine { bits: 3, .. } => $kernel::<{ Id::A3 }> $arguments,
            Kind::Affine { bits: 4, .. } => $kernel::<{ Id::A4 }> $arguments,
            Kind::Affine { bits: 5, .. } => $kernel::<{ Id::A5 }> $arguments,
            Kind::Affine { bits: 6, .. } => $kernel::<{ Id::A6 }> $arguments,
            Kind::Affine { .. } => $kernel::<{ Id::A8 }> $arguments,
            Kind::Q4_0 => $kernel::<{ Id::Q4_0 }> $arguments,
            Kind::Q4_1 => $kernel::<{ Id::Q4_1 }> $arguments,
            Kind::Q5_0 => $kernel::<{ Id::Q5_0 }> $arguments,
            Kind::Q5_1 => $kernel::<{ Id::Q5_1 }> $arguments,
            Kind::Q8_0 => $kernel::<{ Id::Q8_0 }> $arguments,
            Kind::Iq4Nl => $kernel::<{ Id::IQ4_NL }> $arguments,
            Kind::Mxfp4 => $kernel::<{ Id::MXFP4 }> $arguments,
            Kind::Q2K => $kernel::<{ Id::Q2_K }> $arguments,
            Kind::Q3K => $kernel::<{ Id::Q3_K }> $arguments,
            Kind::Q4K => $kernel::<{ Id::Q4_K }> $arguments,
            Kind::Q5K => $kernel::<{ Id::Q5_K }> $arguments,
            Kind::Q6K => $kernel::<{ Id::Q6_K }> $arguments,
            Kind::Iq4Xs => $kernel::<{ Id::IQ4_XS }> $arguments,
        }
    }};
}
pub(crate) use for_kind;
