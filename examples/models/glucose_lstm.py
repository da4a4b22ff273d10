"""How glucose_lstm.onnx was made: a Keras model of two LSTM layers, trained and exported; Eddy has no part in it.

In an environment of its own: pip install keras==3.15.1 tensorflow-cpu==2.21.0 tf2onnx==1.17.0 bokeh_sampledata==2026.1
Then: python glucose_lstm.py FOLDER
"""

import csv
import gzip
import sys
from importlib.resources import files
from pathlib import Path

import keras
import numpy as np

# Readings ahead, of five minutes each.
HORIZONS = (1, 6, 12)
WINDOW, STRIDE, EPOCHS = 96, 16, 30


def read() -> np.ndarray:
    """Glucose under one person's skin in mg/dL, every five minutes or so, float32 [T]; gaps are not marked."""
    packed = files("bokeh_sampledata").joinpath("_data", "CGM.csv.gz").read_bytes()
    rows = csv.DictReader(gzip.decompress(packed).decode().splitlines())
    return np.array([float(row["glucose"]) for row in rows], np.float32)


def windows(series: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [N, WINDOW, 1] and what came after each step, [N, WINDOW, 3]."""
    starts = range(0, len(series) - WINDOW - max(HORIZONS), STRIDE)
    x = np.stack([series[start : start + WINDOW, None] for start in starts])
    after = [np.stack([series[start + h : start + h + WINDOW] for h in HORIZONS], axis=1) for start in starts]
    return x, np.stack(after)


def main(folder: str) -> None:
    """Trains on the first nine tenths, measures on the rest, exports."""
    keras.utils.set_random_seed(7)
    series = read()
    train, test = np.split(series, [len(series) * 9 // 10])
    glucose = keras.Input((None, 1), name="glucose")
    scale = 1 / float(train.std())
    normal = keras.layers.Rescaling(scale, offset=-float(train.mean()) * scale)(glucose)
    hidden = keras.layers.LSTM(32, return_sequences=True)(normal)
    hidden = keras.layers.LSTM(32, return_sequences=True)(hidden)
    change = keras.layers.Dense(len(HORIZONS), kernel_initializer="zeros")(hidden)
    change = keras.layers.Rescaling(float(train.std()))(change)
    forecast = keras.layers.Add(name="forecast")([glucose, change])
    model = keras.Model(glucose, forecast)
    model.compile(keras.optimizers.Adam(0.003), "mae")
    model.fit(*windows(train), batch_size=64, epochs=EPOCHS, verbose=2)
    x, after = windows(test)
    found = model.predict(x, verbose=0)[:, WINDOW // 2 :]
    for number, horizon in enumerate(HORIZONS):
        wanted, last = after[:, WINDOW // 2 :, number], x[:, WINDOW // 2 :, 0]
        errors = [np.abs(guess - wanted).mean() for guess in (found[..., number], last)]
        print(f"{5 * horizon} minutes: mean absolute error {errors[0]:.2f}, of the last value {errors[1]:.2f} mg/dL")
    model.export(str(Path(folder) / "glucose_lstm.onnx"), format="onnx", verbose=False)


if __name__ == "__main__":
    main(sys.argv[1])
