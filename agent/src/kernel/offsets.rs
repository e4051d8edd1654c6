//! Offsets of a few fields of the running kernel's sockets, from its BTF. eBPF in Rust has no CO-RE, so the agent looks them up and
//! passes them to the kernel half in its settings.
//!
//! Format: `Documentation/bpf/btf.rst` of the kernel. Only what is needed to walk to a named member is read.

use std::{collections::HashMap, fs, sync::OnceLock};

use sockway_common::capture::Offsets;

/// Where the kernel shows its BTF.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// The offsets of the running kernel; why not, in words, when they cannot be had. Read once.
pub fn of_running_kernel() -> Result<Offsets, String> {
    found().as_ref().map(|found| found.0).map_err(Clone::clone)
}

/// Byte offset of `task_struct.flags`; `None` when it cannot be had.
pub fn task_flags() -> Option<u32> {
    found().as_ref().ok().and_then(|found| found.1)
}

fn found() -> &'static Result<(Offsets, Option<u32>), String> {
    static OFFSETS: OnceLock<Result<(Offsets, Option<u32>), String>> = OnceLock::new();
    OFFSETS.get_or_init(read)
}

fn read() -> Result<(Offsets, Option<u32>), String> {
    let bytes = fs::read(VMLINUX).map_err(|error| format!("{VMLINUX}: {error}"))?;
    let btf = Btf::parse(&bytes).ok_or_else(|| format!("{VMLINUX}: not a BTF file of a known shape"))?;
    let need = |structure, path: &[&str]| {
        btf.bit_offset(structure, path).map(|bits| bits / 8).ok_or_else(|| format!("no {structure}.{}", path.join(".")))
    };
    let offsets = Offsets {
        cookie: need("sock_common", &["skc_cookie"])?,
        rmem_alloc: need("sock", &["sk_backlog", "rmem_alloc"])?,
        rcvbuf: need("sock", &["sk_rcvbuf"])?,
        // Absent on kernels without MPTCP.
        is_mptcp: btf.bit_offset("tcp_sock", &["is_mptcp"]).map_or(0, |bits| bits / 8),
        ports: need("sock_common", &["skc_dport"])?,
        rcv_nxt: need("tcp_sock", &["rcv_nxt"])?,
        error: need("sock", &["sk_err"])?,
        flags: need("sock_common", &["skc_flags"])?,
        write_seq: need("tcp_sock", &["write_seq"])?,
        copied_seq: need("tcp_sock", &["copied_seq"])?,
    };
    Ok((offsets, btf.bit_offset("task_struct", &["flags"]).map(|bits| bits / 8)))
}

struct Btf<'a> {
    strings: &'a [u8],
    /// By type id; id 0 is void.
    types: Vec<Type<'a>>,
    structs: HashMap<&'a str, usize>,
}

#[derive(Clone, Copy)]
struct Type<'a> {
    kind: u32,
    /// Whether a member's offset holds a bit-field size in its upper byte.
    bit_fields: bool,
    /// The type referred to (modifiers, typedefs).
    target: usize,
    /// Members of a struct or union, 12 bytes each.
    members: &'a [u8],
}

const STRUCT: u32 = 4;
const UNION: u32 = 5;
const TYPEDEF: u32 = 8;
const VOLATILE: u32 = 9;
const CONST: u32 = 10;

impl<'a> Btf<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) != 0xeb9f {
            return None;
        }
        let header = word(bytes, 4)? as usize;
        let (types_at, types_len) = (word(bytes, 8)? as usize, word(bytes, 12)? as usize);
        let (strings_at, strings_len) = (word(bytes, 16)? as usize, word(bytes, 20)? as usize);
        let data = bytes.get(header..)?;
        let strings = data.get(strings_at..strings_at.checked_add(strings_len)?)?;
        let mut rest = data.get(types_at..types_at.checked_add(types_len)?)?;
        let mut btf = Btf {
            strings,
            types: vec![Type { kind: 0, bit_fields: false, target: 0, members: &[] }],
            structs: HashMap::new(),
        };
        while !rest.is_empty() {
            let (name, info, target) = (word(rest, 0)?, word(rest, 4)?, word(rest, 8)?);
            let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            let size = 12 + trailing_bytes(kind, count)?;
            let members = if matches!(kind, STRUCT | UNION) { rest.get(12..size)? } else { &[] };
            if kind == STRUCT
                && let Some(name) = btf.string(name)
            {
                btf.structs.entry(name).or_insert(btf.types.len());
            }
            btf.types.push(Type { kind, bit_fields: info >> 31 != 0, target: target as usize, members });
            rest = rest.get(size..)?;
        }
        Some(btf)
    }

    /// Bit offset of a member, through structures on the path; anonymous ones are searched too.
    fn bit_offset(&self, structure: &str, path: &[&str]) -> Option<u32> {
        let mut at = *self.structs.get(structure)?;
        let mut bits = 0;
        for name in path {
            let (offset, target) = self.member(at, name, 0)?;
            bits += offset;
            at = self.resolve(target)?;
        }
        Some(bits)
    }

    fn member(&self, structure: usize, wanted: &str, depth: usize) -> Option<(u32, usize)> {
        // Anonymous structures nest a few levels; the bound keeps a malformed file from recursing for ever.
        if depth > 8 {
            return None;
        }
        let kind = self.types.get(structure)?;
        kind.members.chunks_exact(12).find_map(|member| {
            let (name, target) = (self.string(word(member, 0)?)?, word(member, 4)? as usize);
            let raw = word(member, 8)?;
            let offset = if kind.bit_fields { raw & 0x00ff_ffff } else { raw };
            if name == wanted {
                return Some((offset, target));
            }
            if !name.is_empty() {
                return None;
            }
            let (inner, target) = self.member(self.resolve(target)?, wanted, depth + 1)?;
            Some((offset + inner, target))
        })
    }

    fn resolve(&self, mut id: usize) -> Option<usize> {
        // As above: a chain of modifiers is short.
        for _ in 0..16 {
            let kind = self.types.get(id)?;
            if !matches!(kind.kind, TYPEDEF | VOLATILE | CONST) {
                return Some(id);
            }
            id = kind.target;
        }
        None
    }

    fn string(&self, at: u32) -> Option<&'a str> {
        let bytes = self.strings.get(at as usize..)?;
        std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
    }
}

/// Bytes that follow a type's first twelve, by its kind; `None` for a kind this parser does not know.
fn trailing_bytes(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
        2 | 7 | 8 | 9 | 10 | 11 | 12 | 16 | 18 => 0,
        // integer, variable, declaration tag
        1 | 14 | 17 => 4,
        // array
        3 => 12,
        // struct, union, data section, enum of 64 bits
        4 | 5 | 15 | 19 => count * 12,
        // enum, function prototype
        6 | 13 => count * 8,
        _ => return None,
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn fields_of_the_running_kernel_are_found() {
        if !std::path::Path::new(VMLINUX).exists() {
            // Past the capture of the test runner, which would hide the output of a test that passes.
            let _ = writeln!(std::io::stderr(), "SKIPPED: this kernel shows no BTF at {VMLINUX}");
            return;
        }
        let offsets = of_running_kernel().unwrap();
        assert!(offsets.cookie > 0 && offsets.cookie.is_multiple_of(8));
        assert!(offsets.rmem_alloc > offsets.cookie && offsets.rcvbuf > offsets.cookie);
    }

    #[test]
    fn garbage_is_no_btf() {
        for bytes in [
            &b""[..],
            b"\x9f\xeb",
            &[0x9f, 0xeb, 1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 9, 9, 9, 9, 0, 0, 0, 0, 1, 1, 1, 1],
        ] {
            assert!(Btf::parse(bytes).is_none());
        }
    }
}
