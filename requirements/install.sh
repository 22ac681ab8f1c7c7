#!/usr/bin/env bash
# Installs a lock file into a virtual environment, fast where possible:
#
#     requirements/install.sh PYTHON ARGUMENTS-OF-PIP-INSTALL...
#
# uv does the work when it can be had (ten times as fast as pip); when it cannot be installed, or fails for any reason
# (a proxy, a certificate or an index that only pip is configured for), the same arguments go to plain pip. Both read their
# own environment variables and configuration files; pip's index and certificate settings are handed on to uv, which does
# not look at them by itself.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 PYTHON ARGUMENTS-OF-PIP-INSTALL..." >&2; exit 2; }
python=$1
shift
here=$(cd "$(dirname "$0")" && pwd)
export PIP_DISABLE_PIP_VERSION_CHECK=1

find_uv() {
    local bin
    for bin in "$(dirname "$python")/uv" "$here/../.venv/bin/uv"; do
        if [ -x "$bin" ]; then echo "$bin"; return; fi
    done
    command -v uv && return
    # Quiet on purpose: failing here is no failure, pip takes over.
    "$python" -m pip install --quiet --requirement "$here/uv.txt" >&2 || return 1
    echo "$(dirname "$python")/uv"
}

hand_pip_settings_to_uv() {
    local index
    index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
    if [ -n "$index" ] && [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="$index"; fi
    # The machine's own certificates, as pip has them (the older name of the switch is for older versions of uv).
    export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-${UV_NATIVE_TLS:-true}}" UV_NATIVE_TLS="${UV_NATIVE_TLS:-true}"
    if [ -n "${PIP_CERT:-}" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE="$PIP_CERT"; fi
    if [ -n "${PIP_PROXY:-}" ] && [ -z "${ALL_PROXY:-}${HTTPS_PROXY:-}" ]; then export ALL_PROXY="$PIP_PROXY"; fi
    if [ -n "${PIP_DEFAULT_TIMEOUT:-}" ] && [ -z "${UV_HTTP_TIMEOUT:-}" ]; then export UV_HTTP_TIMEOUT="$PIP_DEFAULT_TIMEOUT"; fi
}

with_uv() {
    # PIP_NO_INDEX means a local folder of wheels, which is pip's business.
    [ -z "${PIP_NO_INDEX:-}" ] && [ -z "${NHM_NO_UV:-}" ] || return 1
    local uv
    uv=$(find_uv) || return 1
    hand_pip_settings_to_uv
    "$uv" pip install --python "$python" "$@" || { echo "uv could not install; trying again with pip" >&2; return 1; }
}

with_uv "$@" || "$python" -m pip install "$@"
