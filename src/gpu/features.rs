//! The features with which an adapter opens.

/// Those that wgpu says an adapter has, without what would fail when a device is opened.
///
/// wgpu goes by a driver's list of cooperative matrices and panics where the driver then refuses the feature. Mesa 26's software
/// device has such a list on every host and the feature only where the host's vectors have 256 bits or more.
pub(super) fn features(adapter: &wgpu::Adapter) -> wgpu::Features {
    let features = adapter.features();
    let matrices = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
    if features.contains(matrices) && !has_matrices(adapter) { features - matrices } else { features }
}

/// Asks the driver for the feature itself.
#[cfg(any(windows, target_os = "android", target_os = "freebsd", target_os = "linux"))]
#[expect(unsafe_code, reason = "wgpu keeps to itself which features a driver has")]
fn has_matrices(adapter: &wgpu::Adapter) -> bool {
    use ash::vk;

    // SAFETY: the adapter that is lent is not destroyed.
    let Some(adapter) = (unsafe { adapter.as_hal::<wgpu::hal::api::Vulkan>() }) else { return true };
    let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
    let mut features = vk::PhysicalDeviceFeatures2::default().push_next(&mut matrices);
    let instance = adapter.shared_instance().raw_instance();
    // SAFETY: the physical device is of this instance, which is 1.1 at least, or wgpu would not have found matrices; what is
    // filled in outlives the call.
    unsafe { instance.get_physical_device_features2(adapter.raw_physical_device(), &mut features) };
    matrices.cooperative_matrix == vk::TRUE
}

/// Metal has no such list.
#[cfg(not(any(windows, target_os = "android", target_os = "freebsd", target_os = "linux")))]
fn has_matrices(_: &wgpu::Adapter) -> bool {
    true
}
