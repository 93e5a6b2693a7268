// The extension module amct_pytorch._core.
#include "bindings.h"

NB_MODULE(_core, module) {
  // Whoever keeps a session alive to the end of the process (a compiled model does) loses nothing
  // by it.
  nanobind::set_leak_warnings(false);
  module.doc() =
      "C++ core of amct_pytorch. Use amct_pytorch; this module may change without notice.";
  module.attr("__version__") = AMCT_VERSION;
  amct_python::bind_errors(module);
  amct_python::bind_config(module);
  amct_python::bind_record(module);
  amct_python::bind_exporters(module);
  amct_python::bind_observe(module);
  amct_python::bind_session(module);
  amct_python::bind_store(module);
  amct_python::bind_counts(module);
}
