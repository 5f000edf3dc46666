#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <boost/program_options.hpp>

namespace lockstep {

/// Parses a command line and, if `--config FILE` is among its options, that file of `name = value` lines; the
/// command line wins. Throws UsageError for what no option is called, repeated or malformed, naming the
/// closest known option.
boost::program_options::variables_map parse_options(
    int argc, const char* const* argv, const boost::program_options::options_description& options,
    const boost::program_options::positional_options_description& positional = {});

/// "lockstep 0.1.0".
std::string version_text();

}  // namespace lockstep
