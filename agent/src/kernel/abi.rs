//! The two halves must mean the same bytes: the object's stamp and the pinned maps are compared with this agent before anything is loaded.

use std::{io, os::fd::AsFd as _, path::Path};

use sockway_common::{ABI_NAMES, ABI_SECTION, ABI_STAMP, ABI_VERSION};

use super::{KernelError, sys};

/// Compares the stamp that the object carries.
pub fn check_object(object: &[u8]) -> Result<(), KernelError> {
    let stamp = section(object, ABI_SECTION).ok_or_else(|| KernelError::Abi {
        what: format!("the kernel half has no section `{ABI_SECTION}`, this agent speaks version {ABI_VERSION}"),
    })?;
    let words: Vec<u32> =
        stamp.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    compare(&words).map_err(|what| KernelError::Abi { what })
}

fn compare(words: &[u32]) -> Result<(), String> {
    for (index, (name, ours)) in ABI_NAMES.iter().zip(ABI_STAMP).enumerate() {
        match words.get(index) {
            Some(theirs) if *theirs == ours => {}
            Some(theirs) => return Err(format!("{name}: the kernel half says {theirs}, this agent says {ours}")),
            None => return Err(format!("{name}: unknown to the kernel half, this agent says {ours}")),
        }
    }
    if words.len() > ABI_NAMES.len() {
        return Err(format!("the kernel half stamps {} words, this agent knows {}", words.len(), ABI_NAMES.len()));
    }
    Ok(())
}

/// The version of the agent that made what is pinned, from the first word of its settings, which stands there in every version; `None`
/// when nothing is pinned. A later version than ours is refused.
pub fn pinned_version(settings: &Path) -> Result<Option<u32>, KernelError> {
    if !settings.exists() {
        return Ok(None);
    }
    match first_word(settings).map_err(|error| unreadable(settings, error.to_string()))? {
        // An agent that died between making the map and writing it.
        0 => Ok(Some(ABI_VERSION)),
        theirs if theirs > ABI_VERSION => Err(unreadable(settings, other(theirs))),
        theirs => Ok(Some(theirs)),
    }
}

/// What is pinned is of our own version.
pub fn check_pinned(settings: &Path) -> Result<(), KernelError> {
    match pinned_version(settings)? {
        None | Some(ABI_VERSION) => Ok(()),
        Some(theirs) => Err(unreadable(settings, other(theirs))),
    }
}

fn other(theirs: u32) -> String {
    format!("the pinned kernel half speaks version {theirs}, this agent speaks version {ABI_VERSION}")
}

fn unreadable(settings: &Path, what: String) -> KernelError {
    KernelError::PinnedAbi { path: settings.to_path_buf(), what }
}

fn first_word(settings: &Path) -> io::Result<u32> {
    let map = sys::pinned(settings)?;
    let mut value = vec![0; sys::shape(map.as_fd())?.value_bytes as usize];
    sys::get(map.as_fd(), &0_u32.to_ne_bytes(), &mut value)?;
    value.first_chunk().map(|word| u32::from_ne_bytes(*word)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A section of a little-endian ELF64 object by name. Reads nothing outside `object`, whatever it holds.
fn section<'a>(object: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    let word = |at: usize, size: usize| -> Option<usize> {
        let bytes = object.get(at..at.checked_add(size)?)?;
        usize::try_from(bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))).ok()
    };
    // Offsets of the ELF64 header: e_shoff, e_shentsize, e_shnum, e_shstrndx; of a section header: sh_name, sh_offset, sh_size.
    let (table, entry, count, names) = (word(0x28, 8)?, word(0x3a, 2)?, word(0x3c, 2)?, word(0x3e, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(entry)?);
    let names_at = word(header(names)?.checked_add(0x18)?, 8)?;
    (0..count).find_map(|index| {
        let at = header(index)?;
        let name_at = names_at.checked_add(word(at, 4)?)?;
        let name = object.get(name_at..name_at.checked_add(wanted.len() + 1)?)?;
        if name != [wanted.as_bytes(), b"\0"].concat() {
            return None;
        }
        let (start, size) = (word(at.checked_add(0x18)?, 8)?, word(at.checked_add(0x20)?, 8)?);
        object.get(start..start.checked_add(size)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_stamp_passes() {
        assert_eq!(compare(&ABI_STAMP), Ok(()));
    }

    #[test]
    fn a_mismatch_names_what_differs_and_both_sides() {
        let mut words = ABI_STAMP;
        words[0] += 1;
        let message = compare(&words).unwrap_err();
        assert_eq!(
            message,
            format!("abi version: the kernel half says {}, this agent says {ABI_VERSION}", ABI_VERSION + 1)
        );
        assert!(compare(&ABI_STAMP[..3]).unwrap_err().contains("unknown to the kernel half"));
    }

    #[test]
    fn garbage_is_an_object_without_a_stamp() {
        for object in [&b""[..], b"\x7fELF", &[0xff; 256]] {
            assert!(check_object(object).is_err());
        }
    }

    #[cfg(sockway_ebpf)]
    #[test]
    fn the_embedded_object_carries_our_stamp() {
        check_object(super::super::load::OBJECT.expect("built with the kernel half")).unwrap();
    }
}
