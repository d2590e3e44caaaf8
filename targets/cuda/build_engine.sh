#!/bin/sh
# Build a TensorRT engine from this bundle, show what of it runs in the bundle's precision, and run it once.
#
# Usage: build_engine.sh [--trtexec PATH] [--out DIR]
#
#   --trtexec PATH   the trtexec to use (default: the one in PATH, else where NVIDIA's packages put it)
#   --out DIR        where engine, layer list and logs go (default: tensorrt, in the current directory)
#
# Exit codes: 0 built and run; 2 wrong usage; 3 no trtexec; 4 the bundle lacks its model; 5 the engine was not built;
# 6 the engine does not run; 7 no layer runs in the bundle's precision.

set -eu

bundle=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
model=$bundle/model.onnx
shapes=$bundle/engine_shapes.txt
trtexec=
out=tensorrt
precision=int8 # or fp16: what the graph was made for

fail() {
    code=$1
    shift
    printf 'build_engine.sh: %s\n' "$@" >&2
    exit "$code"
}

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

find_trtexec() {
    if command -v trtexec >/dev/null 2>&1; then
        command -v trtexec
        return
    fi
    for candidate in /usr/src/tensorrt/bin/trtexec /opt/tensorrt/bin/trtexec /usr/local/tensorrt/bin/trtexec; do
        if [ -x "$candidate" ]; then
            printf '%s\n' "$candidate"
            return
        fi
    done
}

# knows FLAG: whether this trtexec lists the flag in its help.
knows() {
    printf '%s\n' "$help" | grep -q -E -e "$1([^A-Za-z]|\$)"
}

# Print one line for each layer of the engine: everything from its type on.
layers() {
    tr '\n' ' ' <"$1" | sed 's/"LayerType"/\
"LayerType"/g' | grep '^"LayerType"'
}

while [ $# -gt 0 ]; do
    case $1 in
    --trtexec | --out)
        [ $# -ge 2 ] || fail 2 "$1 needs a value"
        if [ "$1" = --out ]; then out=$2; else trtexec=$2; fi
        shift 2
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) fail 2 "unknown argument '$1'; see --help" ;;
    esac
done

[ -f "$model" ] || fail 4 "$model is missing: this script belongs beside it, in the bundle"
[ -n "$trtexec" ] || trtexec=$(find_trtexec)
[ -n "$trtexec" ] || fail 3 "trtexec is not installed" "hint: it comes with TensorRT; name it with --trtexec PATH"
help=$("$trtexec" --help 2>&1) || [ -n "$help" ] || fail 3 "'$trtexec' cannot be run"
knows --onnx || fail 3 "'$trtexec' does not look like trtexec: its help names no --onnx"

mkdir -p -- "$out"
engine=$out/model.engine
layer_file=$out/layers.json
rm -f -- "$engine" "$layer_file"

# The graph says what each layer computes in. TensorRT 11 takes nothing else into account, TensorRT 10 if it is told so,
# and TensorRT 8 wants the precision to be allowed.
set -- "--onnx=$model" "--saveEngine=$engine" --profilingVerbosity=detailed
if knows --stronglyTyped; then
    set -- "$@" --stronglyTyped
elif knows "--$precision"; then
    set -- "$@" "--$precision"
fi
if knows --skipInference; then
    set -- "$@" --skipInference
elif knows --buildOnly; then
    set -- "$@" --buildOnly
fi
run_shapes=
if [ -f "$shapes" ]; then
    while IFS= read -r line || [ -n "$line" ]; do
        case $line in
        --optShapes=*) run_shapes=--shapes=${line#--optShapes=} ;;
        esac
        [ -z "$line" ] || set -- "$@" "$line"
    done <"$shapes"
fi

printf 'building %s (log: %s)\n' "$engine" "$out/build.log"
if ! "$trtexec" "$@" >"$out/build.log" 2>&1 || [ ! -s "$engine" ]; then
    grep -e '\[E\]' "$out/build.log" >&2 || tail -n 20 "$out/build.log" >&2
    fail 5 "TensorRT did not build the engine; the whole log is $out/build.log"
fi

set -- "--loadEngine=$engine" "--exportLayerInfo=$layer_file" --profilingVerbosity=detailed \
    --warmUp=0 --duration=0 --iterations=1 --avgRuns=1
[ -z "$run_shapes" ] || set -- "$@" "$run_shapes"
printf 'running it once (log: %s)\n' "$out/run.log"
if ! "$trtexec" "$@" >"$out/run.log" 2>&1; then
    grep -e '\[E\]' "$out/run.log" >&2 || tail -n 20 "$out/run.log" >&2
    fail 6 "the engine was built but does not run; the whole log is $out/run.log"
fi
[ -s "$layer_file" ] || fail 6 "trtexec wrote no layer list; the whole log is $out/run.log"

total=$(layers "$layer_file" | wc -l)
case $precision in
int8) set -- -e '"Format/Datatype" *: *"[^"]*int8' -e '"Type" *: *"int8' -e '"TacticName" *: *"[^"]*i8i8' ;;
*) set -- -e '"Format/Datatype" *: *"[^"]*\(half\|fp16\)' -e '"TacticName" *: *"[^"]*f16f16' ;;
esac
found=$(layers "$layer_file" | grep -c -i "$@") || :
printf '%s of %s layers read, write or multiply %s (layer list: %s)\n' "$found" "$((total))" "$precision" "$layer_file"
[ "$found" -gt 0 ] || fail 7 "no layer runs on $precision: this TensorRT took the network as float"
