//! Whether programs may read the kernel's memory, which a kernel that is locked down for confidentiality withholds: asked with a program of the
//! object before the others are loaded, since they are told the answer by a constant.

use std::sync::OnceLock;

use super::{KernelError, load::LOOKING_INSIDE, sys};

/// Whether the running kernel takes the program that looks inside. Asked once.
pub fn can_peek(object: &[u8]) -> Result<bool, KernelError> {
    static CAN_PEEK: OnceLock<bool> = OnceLock::new();
    if let Some(can_peek) = CAN_PEEK.get() {
        return Ok(*can_peek);
    }
    let object = aya_obj::Object::parse(object).map_err(|source| KernelError::Object { source: Box::new(source) })?;
    let missing = || KernelError::NoProgram { name: LOOKING_INSIDE.to_owned() };
    let program = object.programs.get(LOOKING_INSIDE).ok_or_else(missing)?;
    let function = object.functions.get(&program.function_key()).ok_or_else(missing)?;
    let loaded = sys::load_filter(&function.instructions, &program.license);
    if let Err(error) = &loaded {
        tracing::debug!(%error, "programs may not read the kernel's memory");
    }
    Ok(*CAN_PEEK.get_or_init(|| loaded.is_ok()))
}
