"""Run one .tflite file in the runtime of another Python environment, which need not have edgeopt.

    python run_elsewhere.py tflite-runtime|tflite-micro MODEL.tflite INPUTS.npz OUTPUTS.npz

INPUTS holds an array for each input, under its number and with the samples first; OUTPUTS gets the same for outputs.
tflite-micro writes on stderr how much of its arena it took.
"""

import sys

import numpy as np


class TfliteRuntime:
    def __init__(self, path):
        from tflite_runtime.interpreter import Interpreter

        self._interpreter = Interpreter(model_path=path, num_threads=1)
        self._interpreter.allocate_tensors()

    def run(self, arrays):
        details = self._interpreter.get_input_details()
        for detail, array in zip(details, arrays):  # noqa: B905
            if tuple(detail["shape"]) != array.shape:
                self._interpreter.resize_tensor_input(detail["index"], array.shape)
                self._interpreter.allocate_tensors()
        for detail, array in zip(details, arrays):  # noqa: B905
            self._interpreter.set_tensor(detail["index"], array)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(detail["index"]) for detail in self._interpreter.get_output_details()]

    def close(self):
        pass


class TfliteMicro:
    def __init__(self, path):
        from tflite_micro.python.tflite_micro import runtime

        self._interpreter = runtime.Interpreter.from_file(path, arena_size=8 << 20)
        with open(path, "rb") as stream:
            model = runtime.convert_bytearray_to_object(stream.read())
        self._num_outputs = len(model.subgraphs[0].outputs)

    def run(self, arrays):
        for index, array in enumerate(arrays):
            self._interpreter.set_input(array, index)
        self._interpreter.invoke()
        return [np.array(self._interpreter.get_output(index)) for index in range(self._num_outputs)]

    def close(self):
        self._interpreter.print_allocations()


def main(runtime, model, inputs, outputs):
    session = {"tflite-runtime": TfliteRuntime, "tflite-micro": TfliteMicro}[runtime](model)
    with np.load(inputs) as arrays:
        samples = list(zip(*(arrays[str(index)] for index in range(len(arrays.files)))))  # noqa: B905
    answers = [session.run(sample) for sample in samples]
    session.close()
    np.savez(outputs, **{str(i): np.stack([a[i] for a in answers]) for i in range(len(answers[0]))})


if __name__ == "__main__":
    main(*sys.argv[1:])
